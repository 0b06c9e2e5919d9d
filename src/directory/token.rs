//! Tokens of administrators: who may change or see what.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::file::{Problem, Source, hash_secret, read_one};
use super::snapshot::KeyHash;
use crate::core::ids::Id;

/// What the holder of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything, in every org, and tokens.
    Operator,
    /// Everything in one org.
    OrgAdmin,
    /// The members of some profiles of one org.
    ProfileAdmin,
    /// Looking only.
    Viewer,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its name, which the audit shows.
    pub id: Id,
    /// The hash it is found by, compared once more in constant time.
    pub hash: KeyHash,
    /// What it may do.
    pub role: Role,
    /// In which org; `None` for all: operators, and viewers of everything.
    pub org: Option<Id>,
    /// A profile-admin's profiles.
    pub profiles: Vec<Id>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By the holder of which token.
    pub created_by: String,
    /// From when it is refused.
    pub expires: Option<Timestamp>,
}

/// A token that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Its name.
    pub id: Id,
    /// What it may do.
    pub role: Role,
    /// In which org.
    pub org: Option<Id>,
    /// A profile-admin's profiles.
    pub profiles: Vec<Id>,
    /// From when it is refused.
    pub expires: Option<Timestamp>,
}

/// Every token, by its id and by its hash.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<HashMap<KeyHash, Arc<Token>>>);

/// The name of the token that is configured, which is in no database.
pub const OPERATOR: &str = "operator";
/// How many tokens there may be.
pub const MOST: usize = 1_000;
/// The keys of a token's document.
pub const TOKEN_KEYS: &[&str] = &["id", "role", "org", "profiles", "expires"];

impl Role {
    const ALL: [Self; 4] = [Self::Operator, Self::OrgAdmin, Self::ProfileAdmin, Self::Viewer];

    /// Its word in documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::OrgAdmin => "org-admin",
            Self::ProfileAdmin => "profile-admin",
            Self::Viewer => "viewer",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.word() == word).ok_or(())
    }
}

impl Token {
    /// What is shown of it.
    pub fn document(&self) -> Value {
        let mut document = json!({
            "id": self.id,
            "role": self.role,
            "org": self.org,
            "profiles": self.profiles,
            "created_at": self.created_at,
            "created_by": self.created_by,
            "expires": self.expires,
        });
        if let Some(map) = document.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        document
    }
}

impl Tokens {
    /// These tokens.
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        Self(Arc::new(tokens.into_iter().map(|token| (token.hash, Arc::new(token))).collect()))
    }

    /// The token with this secret, if it is live at `now`. As with keys it is found by the hash
    /// of its secret, never by the secret (f79).
    pub fn find(&self, secret: &str, now: Timestamp) -> Option<&Arc<Token>> {
        let hash = hash_secret(secret);
        let token = self.0.get(&hash)?;
        let live = token.expires.is_none_or(|end| now < end);
        (bool::from(token.hash.ct_eq(&hash)) && live).then_some(token)
    }

    /// The token with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Token>> {
        self.iter().find(|token| token.id.as_str() == id)
    }

    /// A token for a profile: while there is one, the profile is not deleted, or another of its
    /// name would have an administrator that nobody gave it.
    pub fn naming(&self, org: &Id, profile: &Id) -> Option<&Arc<Token>> {
        let names = |token: &&Arc<Token>| {
            token.org.as_ref() == Some(org) && token.profiles.contains(profile)
        };
        self.iter().find(names)
    }

    /// Every token, in no order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Token>> {
        self.0.values()
    }
}

impl NewToken {
    /// Reads what is to be made: `id`, `role`, and by role `org` and `profiles`; `expires`.
    ///
    /// # Errors
    /// Everything wrong with it that can be seen without knowing the orgs.
    pub fn read(body: &Source) -> Result<Self, Vec<Problem>> {
        read_one(body.value(), TOKEN_KEYS, |object| {
            let id = object.required::<Id>("id");
            let role = object.required::<Role>("role");
            let org = object.optional::<Id>("org");
            let profiles: Vec<(usize, Id)> = object.list("profiles").unwrap_or_default();
            let expires = object.optional("expires");
            if id.as_ref().is_some_and(|id| id.as_str() == OPERATOR) {
                object.note("id", "is the name of the configured token");
            }
            let (id, role) = (id?, role?);
            match (role, &org) {
                (Role::Operator, Some(_)) => object.note("org", "an operator's token has none"),
                (Role::OrgAdmin | Role::ProfileAdmin, None) => {
                    object.note("org", format!("is required for {}", role.word()));
                }
                _ => {}
            }
            match (role, profiles.is_empty()) {
                (Role::ProfileAdmin, true) => {
                    object.note("profiles", "at least one is required for profile-admin");
                }
                (Role::Operator | Role::OrgAdmin | Role::Viewer, false) => {
                    object.note("profiles", "only a profile-admin has some");
                }
                _ => {}
            }
            let profiles = profiles.into_iter().map(|(_, profile)| profile).collect();
            Some(Self { id, role, org, profiles, expires })
        })
    }
}
