//! What the endpoints do. Who may ask, and that what is asked makes sense, was checked before.

pub mod adjustments;
pub mod audit;
pub mod charges;
pub mod orgs;
pub mod quotes;
pub mod things;
pub mod tokens;
pub mod users;
