//! The rules, pure: no I/O, no clock, no environment, no randomness. Whatever depends on time
//! takes `now`. No float is near money.

pub mod account;
pub mod adjustment;
pub mod amount;
pub mod balance;
pub mod charge;
pub mod cycle;
pub mod entitlement;
pub mod ids;
pub mod note;
pub mod price;
pub mod receipt;
pub mod record;
pub mod refusal;
pub mod waterfall;
