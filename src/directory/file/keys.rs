//! The sections of an org file and the keys of each: any other is refused.

/// Every section.
pub const SECTIONS: &[&str] =
    &["apply", "org", "term", "plan", "group", "user", "profile", "rate_card", "key"];
/// The sections that are lists, in the order in which they are read.
pub const LISTS: &[&str] = SECTIONS.split_at(2).1;
/// The keys of `[apply]`.
pub const APPLY_KEYS: &[&str] = &["prune"];
/// The keys of `[org]`.
pub const ORG_KEYS: &[&str] = &[
    "id",
    "timezone",
    "anchor",
    "contract",
    "products",
    "offers",
    "bases",
    "overage",
    "split",
    "mode",
    "on_reassign",
    "pool_limit",
];
/// The keys of `[[term]]`.
pub const TERM_KEYS: &[&str] = &["id", "start", "end", "pool", "price_per_operation", "currency"];
/// The keys of `[[plan]]`.
pub const PLAN_KEYS: &[&str] = &["id", "credits"];
/// The keys of `[[group]]`.
pub const GROUP_KEYS: &[&str] = &["id"];
/// The keys of `[[user]]`.
pub const USER_KEYS: &[&str] = &["id", "email", "suspended", "pool_limit", "licences", "groups"];
/// The keys of a user's `licences`.
pub const LICENCE_KEYS: &[&str] = &["id", "plan", "priority", "expires"];
/// The keys of a licence as a thing of its own, in the admin API.
pub const OWN_LICENCE_KEYS: &[&str] = &["id", "plan", "user", "priority", "expires"];
/// The keys of a rotation, in the admin API.
pub const ROTATION_KEYS: &[&str] = &["secret", "until"];
/// The keys of `[[profile]]`.
pub const PROFILE_KEYS: &[&str] =
    &["id", "product", "shared_credits", "users", "groups", "pool_limit", "overage"];
/// The keys of `[[rate_card]]`.
pub const RATE_CARD_KEYS: &[&str] =
    &["version", "offer", "effective", "operations_per_credit", "rate"];
/// The keys of `[[rate_card.rate]]`.
pub const RATE_KEYS: &[&str] =
    &["feature", "meter", "when", "unit", "credits", "operations", "tier", "pool"];
/// The keys of `[[key]]`.
pub const KEY_KEYS: &[&str] = &[
    "id",
    "kind",
    "user",
    "profile",
    "acts_for",
    "pool_limit",
    "secret",
    "secret_env",
    "secret_file",
];
/// The keys of a key's `acts_for`, where it is not `"*"`.
pub const ACTS_FOR_KEYS: &[&str] = &["users", "groups"];
