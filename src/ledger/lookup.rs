//! Charges by id: open ones from the books, resolved ones from the archive.

use std::sync::Arc;

use super::archive::Archive;
use crate::books::embedded::{Engine, Session};
use crate::books::{Books, BooksError, OpenCharge};
use crate::core::charge::{ChargeDocument, ChargeRecord, LegLine, leg_documents};
use crate::core::ids::ChargeId;

/// Books and archive side by side.
pub struct ChargeBook {
    engine: Arc<Engine>,
    session: Session,
    archive: Archive,
}

impl ChargeBook {
    /// Looks up in these.
    pub fn new(engine: Arc<Engine>, archive: Archive) -> Self {
        Self { session: engine.session(), engine, archive }
    }

    /// A charge, if there is one with this id.
    ///
    /// # Errors
    /// When books or archive fail.
    pub async fn find(&self, id: ChargeId) -> Result<Option<ChargeDocument>, BooksError> {
        if let Some(open) = self.session.open_charge(id).await? {
            return describe(&open).map(Some);
        }
        let archived = self.archive.charge(id, self.engine.written()).await;
        archived.map_err(|error| BooksError::Unavailable(error.to_string()))
    }
}

fn describe(open: &OpenCharge) -> Result<ChargeDocument, BooksError> {
    let memo = postcard::from_bytes(&open.memo)
        .map_err(|error| BooksError::Unavailable(format!("an open hold's memo: {error}")))?;
    let record = ChargeRecord { id: open.charge, held_at: open.held_at, memo, resolved: None };
    let lines: Vec<LegLine<'_>> = open
        .legs
        .iter()
        .map(|leg| LegLine {
            account: &leg.account,
            account_kind: leg.account_kind,
            kind: leg.kind,
            amount: leg.amount,
        })
        .collect();
    Ok(record.document(leg_documents(&lines, record.cost())))
}
