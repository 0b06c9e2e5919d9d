//! Who asks, and what of an org they reach: nothing, unless the endpoint's roles say so.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use jiff::Timestamp;

use super::Admin;
use super::call::Params;
use super::endpoint::Endpoint;
use super::problem::{Code, Problem};
use crate::core::ids::Id;
use crate::directory::snapshot::{Org, User};
use crate::directory::token::{OPERATOR, Role};

/// The holder of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The token's id, as the audit names it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The org it belongs to; `None` for all of them.
    pub org: Option<Id>,
    profiles: Vec<Id>,
}

impl Who {
    /// Whose token a request carries.
    ///
    /// # Errors
    /// `unauthenticated` where there is none, one that is not known, or more than one.
    pub fn of(admin: &Admin, headers: &HeaderMap, now: Timestamp) -> Result<Self, Problem> {
        let refuse = || {
            let detail = "send a token as `Authorization: Bearer …`, once";
            Problem::new(Code::Unauthenticated, detail)
        };
        let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
        let only = credentials.next().filter(|_| credentials.next().is_none());
        let text = only.and_then(|value| value.to_str().ok()).ok_or_else(refuse)?;
        let (scheme, secret) = text.split_once(' ').ok_or_else(refuse)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refuse());
        }
        let secret = secret.trim();
        if admin.token.is(secret) {
            let name = OPERATOR.to_owned();
            return Ok(Self { name, role: Role::Operator, org: None, profiles: Vec::new() });
        }
        let live = Arc::clone(&admin.directory.live().load());
        let token = live.tokens.find(secret, now).ok_or_else(refuse)?;
        Ok(Self {
            name: token.id.to_string(),
            role: token.role,
            org: token.org.clone(),
            profiles: token.profiles.clone(),
        })
    }

    #[cfg(test)]
    pub fn named(name: &str, role: Role) -> Self {
        Self { name: name.to_owned(), role, org: None, profiles: Vec::new() }
    }

    /// Lets through whose role the endpoint names, in the org that the token belongs to.
    ///
    /// # Errors
    /// `forbidden`: it does not tell whether the org exists.
    pub fn may(&self, endpoint: &Endpoint, params: &Params) -> Result<(), Problem> {
        let forbidden = |detail: &str| Err(Problem::new(Code::Forbidden, detail));
        if !endpoint.roles.contains(&self.role) {
            let roles: Vec<&str> = endpoint.roles.iter().map(|role| role.word()).collect();
            return forbidden(&format!("this needs a token of role {}", roles.join(" or ")));
        }
        let asked = params.iter().find(|(name, _)| name == "org").map(|(_, id)| id.as_str());
        match (&self.org, asked) {
            (Some(own), Some(asked)) if own.as_str() != asked => {
                forbidden("the token belongs to another org")
            }
            _ => Ok(()),
        }
    }

    /// The profiles that the token is narrowed to; `None` where it sees whole orgs.
    pub fn profiles(&self) -> Option<&[Id]> {
        (self.role == Role::ProfileAdmin).then_some(&self.profiles[..])
    }

    /// Whether the token is for a profile.
    pub fn has_profile(&self, profile: &str) -> bool {
        self.profiles().is_none_or(|own| own.iter().any(|id| id.as_str() == profile))
    }

    /// Whether it sees an org at all.
    pub fn sees_org(&self, org: &Id) -> bool {
        self.org.as_ref().is_none_or(|own| own == org)
    }

    /// Whether it sees a user: a profile-admin sees the members of its profiles.
    pub fn sees(&self, org: &Org, user: &User) -> bool {
        self.profiles().is_none_or(|own| own.iter().any(|profile| org.is_member(user, profile)))
    }

    /// Whether it sees what belongs to a user of this id; nobody's belongs to the org as a whole.
    pub fn sees_id(&self, org: &Org, user: Option<&str>) -> bool {
        if self.profiles().is_none() {
            return true;
        }
        let user = user.and_then(|user| org.users.get(user));
        user.is_some_and(|user| self.sees(org, user))
    }
}
