//! The ledger behind the books: an archive of charges that follows the journal, the verifier, and
//! books in Redis that are built again.

pub mod add_up;
pub mod archive;
pub mod lookup;
pub mod repair;
pub mod verify;
