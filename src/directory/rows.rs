//! An org as the directory stores it: one row for each thing, and what of it is shown in a
//! difference and in the audit.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize, de};

use super::reassign::{Moved, OnReassign};
use super::snapshot::{ActsFor, KeyHash, Mode};
use super::things::secret_id;
use crate::core::amount::{Credits, Operations, Ratio};
use crate::core::cycle::{Anchor, Schedule, start_of};
use crate::core::entitlement::{BASES, OFFERS, Overage};
use crate::core::ids::Id;
use crate::core::price::RateCardFile;
use crate::core::waterfall::Split;

/// Who made a thing: pruning removes only what a file made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MadeBy {
    /// An org file.
    #[default]
    File,
    /// A single change through the admin API.
    Api,
}

/// A thing and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<T> {
    /// Who made it.
    pub made_by: MadeBy,
    /// The thing.
    pub value: T,
}

/// Things by id, shared between the state before a change and the one after it.
pub type Table<T> = BTreeMap<Id, Arc<Row<T>>>;

/// An org with the users and licences that a change looks at.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The org's id.
    pub id: Id,
    /// Everything but users and licences.
    pub details: Details,
    /// Anchor and zone over time.
    pub schedule: Schedule,
    /// Users: all of them, or those that the change can touch.
    pub users: Table<User>,
    /// Licences: as with users.
    pub licences: Table<Licence>,
}

/// Everything about an org but its users and licences.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The `[org]` section, less anchor and zone.
    pub settings: Settings,
    /// Contract periods.
    pub terms: Table<Term>,
    /// Plans.
    pub plans: Table<Plan>,
    /// Groups.
    pub groups: Table<Group>,
    /// Product profiles.
    pub profiles: Table<Profile>,
    /// Rate cards by version.
    pub cards: Table<RateCardFile>,
    /// Keys.
    pub keys: Table<Key>,
}

/// What is set for an org as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kind of contract.
    pub contract: Option<Id>,
    /// The products the org has.
    pub products: Vec<Id>,
    /// Which products are offers (D12).
    pub offers: Vec<Id>,
    /// Which products are bases (D12).
    pub bases: Vec<Id>,
    /// Overage policy (D26).
    pub overage: Overage,
    /// What happens to a charge that the seat can pay in part (D25).
    pub split: Split,
    /// Enforce or observe.
    pub mode: Mode,
    /// What the new holder of a moved licence gets (D10).
    pub on_reassign: OnReassign,
    /// The limit on draws per member and cycle (D17).
    pub pool_limit: Option<Operations>,
}

/// A contract period of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its first local date.
    pub start: Date,
    /// The first local date after it.
    pub end: Date,
    /// The pool.
    pub pool: Operations,
    /// What an Operation past the pool costs.
    pub price_per_operation: Option<Ratio>,
    /// In which currency.
    pub currency: Option<Id>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Credits a cycle.
    pub credits: Credits,
}

/// A group; users name the groups they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group;

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// An attribute, not an identity.
    pub email: Option<String>,
    /// Refused while true.
    pub suspended: bool,
    /// The user's own limit on draws.
    pub pool_limit: Option<Operations>,
    /// Groups, sorted.
    pub groups: Vec<Id>,
    /// Profiles that name the user directly, sorted.
    pub profiles: Vec<Id>,
}

/// A licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// The plan it is an instance of.
    pub plan: Id,
    /// Who holds it.
    pub holder: Option<Id>,
    /// The lower number burns first.
    pub priority: u32,
    /// Until when it pays.
    pub expires: Option<When>,
    /// Who else held it in the cycle in which it last changed hands (D10).
    pub moved: Option<Moved>,
}

/// A product profile; the users it names are in [`User::profiles`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The product.
    pub product: Id,
    /// The Shared Credits switch.
    pub shared_credits: bool,
    /// The limit on draws per member and cycle.
    pub pool_limit: Option<Operations>,
    /// Its own overage policy, where stricter than the org's.
    pub overage: Option<Overage>,
    /// Groups, sorted.
    pub groups: Vec<Id>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What it may do.
    pub kind: KeyKind,
    /// Its own limit on draws (D18).
    pub pool_limit: Option<Operations>,
    /// Live secrets: one, or two during rotation.
    pub secrets: Vec<Secret>,
}

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Acts for users by header.
    Service(ActsFor),
    /// Is this user.
    User(Id),
    /// Draws on the pool under this profile.
    Principal(Id),
}

/// A secret as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its SHA-256.
    pub hash: KeyHash,
    /// From when it is refused.
    pub expires: Option<Timestamp>,
}

/// An instant, or the first instant of a local date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// The start of this date in the org's zone.
    Date(Date),
    /// This instant.
    At(Timestamp),
}

/// One value as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A text; `none` where absent.
    Text(String),
    /// Ids, of which a difference shows what came and what went.
    List(Vec<Id>),
}

/// The values of a thing by key.
pub type Fields = Vec<(&'static str, Shown)>;

/// Something with values that can be shown.
pub trait Show {
    /// What it is called in a difference: the section of the org file.
    const WORD: &'static str;

    /// Its values. Two things with equal values are equal to everybody but the hot path.
    fn fields(&self) -> Fields;
}

impl<T> Deref for Row<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl MadeBy {
    /// The word in the database.
    pub const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let ids = |words: &[&str]| words.iter().filter_map(|word| word.parse().ok()).collect();
        Self {
            contract: None,
            products: Vec::new(),
            offers: ids(&OFFERS),
            bases: ids(&BASES),
            overage: Overage::default(),
            split: Split::default(),
            mode: Mode::default(),
            on_reassign: OnReassign::default(),
            pool_limit: None,
        }
    }
}

impl Rows {
    /// An org of which nothing is known yet.
    pub fn empty(id: Id) -> Self {
        Self {
            id,
            details: Details::default(),
            schedule: Schedule::new(Anchor::default(), TimeZone::UTC),
            users: Table::new(),
            licences: Table::new(),
        }
    }
}

impl When {
    /// The instant, for an org with this schedule.
    pub fn instant(self, schedule: &Schedule) -> Timestamp {
        match self {
            Self::At(instant) => instant,
            Self::Date(date) => instant_of(date, schedule),
        }
    }
}

/// The first instant of a local date, in the zone that is in force on that day.
pub fn instant_of(date: Date, schedule: &Schedule) -> Timestamp {
    let near = start_of(date, &schedule.latest().zone);
    start_of(date, schedule.zone_at(near))
}

/// A zone of the bundled database, by IANA name: never the machine's own, which may be another
/// version or absent.
pub fn zone(name: &str) -> Option<TimeZone> {
    static BUNDLED: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    if name == "UTC" { Some(TimeZone::UTC) } else { BUNDLED.get(name).ok() }
}

/// A zone's name.
pub fn zone_name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or("UTC")
}

/// A hash in hexadecimal.
pub fn hex(hash: &[u8]) -> String {
    use fmt::Write;
    hash.iter().fold(String::with_capacity(hash.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Date(date) => write!(f, "{date}"),
            Self::At(instant) => write!(f, "{instant}"),
        }
    }
}

impl FromStr for When {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        if text.len() == 10 { text.parse().map(Self::Date) } else { text.parse().map(Self::At) }
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(|_| de::Error::custom("expected a date or an RFC 3339 time"))
    }
}

fn text(value: impl fmt::Display) -> Shown {
    Shown::Text(value.to_string())
}

fn option(value: &Option<impl fmt::Display>) -> Shown {
    value.as_ref().map_or_else(|| text("none"), text)
}

/// What serde would write for a plain word, or the whole JSON of anything else.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

impl Show for Settings {
    const WORD: &'static str = "org";
    fn fields(&self) -> Fields {
        vec![
            ("contract", option(&self.contract)),
            ("products", Shown::List(self.products.clone())),
            ("offers", Shown::List(self.offers.clone())),
            ("bases", Shown::List(self.bases.clone())),
            ("overage", text(word(&self.overage))),
            ("split", text(word(&self.split))),
            ("mode", text(word(&self.mode))),
            ("on_reassign", text(word(&self.on_reassign))),
            ("pool_limit", option(&self.pool_limit)),
        ]
    }
}

impl Show for Term {
    const WORD: &'static str = "term";
    fn fields(&self) -> Fields {
        vec![
            ("start", text(self.start)),
            ("end", text(self.end)),
            ("pool", text(self.pool)),
            ("price_per_operation", option(&self.price_per_operation)),
            ("currency", option(&self.currency)),
        ]
    }
}

impl Show for Plan {
    const WORD: &'static str = "plan";
    fn fields(&self) -> Fields {
        vec![("credits", text(self.credits))]
    }
}

impl Show for Group {
    const WORD: &'static str = "group";
    fn fields(&self) -> Fields {
        Vec::new()
    }
}

impl Show for User {
    const WORD: &'static str = "user";
    fn fields(&self) -> Fields {
        vec![
            ("email", option(&self.email)),
            ("suspended", text(self.suspended)),
            ("pool_limit", option(&self.pool_limit)),
            ("groups", Shown::List(self.groups.clone())),
            ("profiles", Shown::List(self.profiles.clone())),
        ]
    }
}

impl Show for Licence {
    const WORD: &'static str = "licence";
    fn fields(&self) -> Fields {
        vec![
            ("plan", text(&self.plan)),
            ("holder", option(&self.holder)),
            ("priority", text(self.priority)),
            ("expires", option(&self.expires)),
        ]
    }
}

impl Show for Profile {
    const WORD: &'static str = "profile";
    fn fields(&self) -> Fields {
        vec![
            ("product", text(&self.product)),
            ("shared_credits", text(self.shared_credits)),
            ("pool_limit", option(&self.pool_limit)),
            ("overage", self.overage.map_or_else(|| text("none"), |own| text(word(&own)))),
            ("groups", Shown::List(self.groups.clone())),
        ]
    }
}

impl Show for RateCardFile {
    const WORD: &'static str = "rate_card";
    fn fields(&self) -> Fields {
        vec![
            ("offer", option(&self.offer)),
            ("effective", option(&self.effective)),
            ("operations_per_credit", text(self.operations_per_credit)),
            ("rate", text(word(&self.rates))),
        ]
    }
}

impl Show for Key {
    const WORD: &'static str = "key";
    fn fields(&self) -> Fields {
        let shown = |secret: &Secret| match secret.expires {
            Some(expires) => format!("{} until {expires}", secret_id(secret)),
            None => secret_id(secret),
        };
        let secrets: Vec<String> = self.secrets.iter().map(shown).collect();
        vec![
            ("kind", text(word(&self.kind))),
            ("pool_limit", option(&self.pool_limit)),
            ("secret", text(secrets.join(" and "))),
        ]
    }
}
