//! Which entries of a shard's ledger are archived, where Redis has lost some: positions are given again
//! then, in another term.

use std::collections::HashMap;

use crate::sql::{Connection, query};

/// The terms of a shard, as its ledger has them, and as they are archived.
#[derive(Debug)]
pub(super) struct Terms {
    /// The name of each, and the position of the last entry before it.
    ledger: Vec<(String, u64)>,
    /// Up to which position each is archived.
    through: HashMap<String, u64>,
}

impl Terms {
    pub(super) async fn read(
        db: &mut Connection,
        shard: usize,
        ledger: Vec<(String, u64)>,
    ) -> Result<Self, sqlx::Error> {
        let select = query("SELECT term, through FROM shard_terms WHERE shard = $1");
        let mut through = HashMap::new();
        for row in select.bind(shard as i64).fetch_all(db).await? {
            let (term, position): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            through.insert(term, position as u64);
        }
        Ok(Self { ledger, through })
    }

    /// The name of the term that goes on.
    pub(super) fn last(&self) -> &str {
        self.ledger.last().map_or("", |(name, _)| name)
    }

    /// Up to where the ledger is archived from its beginning on, whatever the archive has of entries
    /// that are lost. `position` is how far it was.
    pub(super) fn go_on(&self, position: u64) -> u64 {
        for (at, (name, from)) in self.ledger.iter().enumerate() {
            let end = self.ledger.get(at + 1).map(|(_, from)| *from);
            let has = self.through.get(name).map_or(*from, |through| (*through).max(*from));
            if end.is_none_or(|end| has < end) {
                return has;
            }
        }
        position
    }

    /// Whether an entry is archived that had this position in this term.
    pub(super) fn has(&self, term: &str, position: u64) -> bool {
        self.through.get(term).is_some_and(|through| position <= *through)
    }

    /// The ledger is archived up to a position.
    pub(super) async fn archived(
        &self,
        db: &mut Connection,
        shard: usize,
        position: u64,
    ) -> Result<(), sqlx::Error> {
        for (at, (name, from)) in self.ledger.iter().enumerate() {
            let end = self.ledger.get(at + 1).map_or(position, |(_, from)| position.min(*from));
            if end <= *from || self.through.get(name).is_some_and(|through| end <= *through) {
                continue;
            }
            let sql = "INSERT INTO shard_terms (shard, term, through) VALUES ($1, $2, $3) \
                       ON CONFLICT (shard, term) DO UPDATE SET through = excluded.through";
            let insert = query(sql).bind(shard as i64).bind(name).bind(end as i64);
            insert.execute(&mut *db).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(ledger: &[(&str, u64)], through: &[(&str, u64)]) -> Terms {
        let own = |(name, position): &(&str, u64)| ((*name).to_owned(), *position);
        let ledger = ledger.iter().map(own).collect();
        Terms { ledger, through: through.iter().map(own).collect() }
    }

    #[test]
    fn f34_the_archive_goes_on_where_the_ledger_and_it_part() {
        let go_on = |ledger: &[_], through: &[_]| terms(ledger, through).go_on(7);
        assert_eq!(go_on(&[("a", 0)], &[]), 0);
        assert_eq!(go_on(&[("a", 0)], &[("a", 90)]), 90);
        // Nothing was lost, and the archive is behind, at the end, or in the next term.
        let two = [("a", 0), ("b", 100)];
        assert_eq!(go_on(&two, &[("a", 90)]), 90);
        assert_eq!(go_on(&two, &[("a", 100)]), 100);
        assert_eq!(go_on(&two, &[("a", 100), ("b", 120)]), 120);
        // What is archived behind the entry that the next term goes on from is lost.
        assert_eq!(go_on(&two, &[("a", 140)]), 100);
        assert_eq!(go_on(&two, &[("a", 140), ("b", 120)]), 120);
        // A term that was lost as a whole, and an older file put back twice.
        assert_eq!(go_on(&[("a", 0), ("c", 80)], &[("a", 100), ("b", 120)]), 80);
        assert_eq!(go_on(&[("a", 0), ("c", 80), ("d", 95)], &[("a", 99), ("c", 90)]), 90);
        // The oldest terms are not listed for ever.
        assert_eq!(go_on(&[("c", 80), ("d", 95)], &[("c", 95), ("d", 99)]), 99);
        assert_eq!(go_on(&[], &[]), 7);
    }

    #[test]
    fn f34_what_is_done_again_is_archived_if_it_was_not_before_it_was_lost() {
        let terms = terms(&[("b", 100)], &[("a", 140), ("b", 90)]);
        assert!(terms.has("a", 140) && !terms.has("a", 141) && !terms.has("c", 1));
    }
}
