//! The ledger behind the books: an archive of charges that follows the journal, and the verifier.

pub mod archive;
pub mod lookup;
pub mod verify;
