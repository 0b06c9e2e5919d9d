//! Charges by id: open ones from the books, resolved ones from the archive.

use super::archive::{Archive, ArchiveError, KeptLeg, Mark};
use crate::books::{Books, BooksError, Engine, OpenCharge, Session};
use crate::core::adjustment::AdjustmentDocument;
use crate::core::charge::{ChargeDocument, ChargeRecord, LegLine, leg_documents};
use crate::core::ids::{ChargeId, home_of};
use crate::core::note::{self, OutcomeNote};

/// Books and archive side by side.
pub struct ChargeBook {
    engine: Engine,
    session: Session,
    archive: Archive,
}

impl ChargeBook {
    /// Looks up in these.
    pub fn new(engine: Engine, archive: Archive) -> Self {
        Self { session: engine.session(), engine, archive }
    }

    /// All that is recorded by now of orgs with this home.
    async fn mark(&self, home: u16) -> Result<Mark, BooksError> {
        let engine = match &self.engine {
            Engine::Embedded(engine) => return Ok(Mark::journal(engine.written())),
            Engine::Redis(engine) => engine,
        };
        let shard = engine.shard_of(home);
        let end = engine.ledger_end(shard).await;
        let end = end.map_err(|error| BooksError::Unavailable(error.to_string()))?;
        Ok(Mark { shard: shard as u16, position: end.unwrap_or(0) })
    }

    /// A charge, if there is one with this id.
    ///
    /// # Errors
    /// When books or archive fail.
    pub async fn find(&self, id: ChargeId) -> Result<Option<ChargeDocument>, BooksError> {
        if let Some(open) = self.session.open_charge(id).await? {
            return describe(&open).map(Some);
        }
        let archived = self.archive.charge(id, self.mark(id.home()).await?).await;
        archived.map_err(unavailable)
    }

    /// What was noted when a charge was resolved.
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn note(&self, id: ChargeId) -> Result<Vec<u8>, BooksError> {
        self.archive.note(id, self.mark(id.home()).await?).await.map_err(unavailable)
    }

    /// The HTTP message that answered a charge's request, where one is kept (D35).
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn answer(&self, id: ChargeId) -> Result<Option<Vec<u8>>, BooksError> {
        self.archive.answer(id, self.mark(id.home()).await?).await.map_err(unavailable)
    }

    /// The open charges of an org, in no order.
    ///
    /// # Errors
    /// When the books fail, or a hold's memo cannot be read.
    pub async fn open(&self, org: &str) -> Result<Vec<ChargeDocument>, BooksError> {
        let open = self.engine.list_open().await?;
        let described = open.iter().map(describe);
        let own = |charge: &Result<ChargeDocument, BooksError>| {
            charge.as_ref().is_ok_and(|charge| charge.org == org) || charge.is_err()
        };
        described.filter(own).collect()
    }

    /// The adjustment with this id, if it was made.
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn adjustment(&self, id: ChargeId) -> Result<Option<AdjustmentDocument>, BooksError> {
        self.archive.adjustment(id, self.mark(id.home()).await?).await.map_err(unavailable)
    }

    /// Adjustments of an org with their places, newest first: at most `limit`, those before a
    /// place where one is given.
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn adjustments(
        &self,
        org: &str,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, AdjustmentDocument)>, BooksError> {
        let mark = self.mark(home_of(org)).await?;
        self.archive.adjustments(org, before, limit, mark).await.map_err(unavailable)
    }

    /// What was given back of a charge, in the order of its legs.
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn given_back(&self, id: ChargeId) -> Result<Vec<AdjustmentDocument>, BooksError> {
        self.archive.given_back(id, self.mark(id.home()).await?).await.map_err(unavailable)
    }

    /// What a resolved charge took in the end, limits and caps included.
    ///
    /// # Errors
    /// When the archive fails or is behind.
    pub async fn legs(&self, id: ChargeId) -> Result<Vec<KeptLeg>, BooksError> {
        self.archive.legs(id, self.mark(id.home()).await?).await.map_err(unavailable)
    }
}

fn unavailable(error: ArchiveError) -> BooksError {
    BooksError::Unavailable(error.to_string())
}

fn describe(open: &OpenCharge) -> Result<ChargeDocument, BooksError> {
    let memo = postcard::from_bytes(&open.memo)
        .map_err(|error| BooksError::Unavailable(format!("an open hold's memo: {error}")))?;
    let record = ChargeRecord {
        id: open.charge,
        held_at: open.held_at,
        expires: open.expires,
        memo,
        resolved: None,
        notes: (note::decode(&open.note), OutcomeNote::default()),
    };
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
    Ok(record.document(leg_documents(&lines, record.covered())))
}
