//! What a scrub found and did, as it goes from the server to the tool, and to whoever reads JSON.

use std::fmt;

use serde::{Deserialize, Serialize};
use tlog_proto::VdiskId;
use tlog_store::NumberRanges;

use crate::storage::Scrubbed;

/// The report of one scrub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// The vdisk.
    pub vdisk: String,
    /// Aggregations that were looked at.
    pub aggregations: u64,
    /// Whether every store holds every shard, now.
    pub whole: bool,
    /// Aggregations of which too few whole shards are left, as ranges from, to.
    pub unreadable: Vec<(u64, u64)>,
    /// Stores that came back empty and were filled.
    pub filled_stores: Vec<String>,
    /// The stores, in order.
    pub stores: Vec<ScrubbedStore>,
}

/// What was found on one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbedStore {
    /// What a person calls it.
    pub address: String,
    /// Whether it could be looked at.
    pub counted: bool,
    /// Aggregations of which it held nothing, as ranges from, to.
    pub missing: Vec<(u64, u64)>,
    /// Aggregations of which it held something damaged.
    pub damaged: Vec<(u64, u64)>,
    /// Of both, what was put back.
    pub refilled: Vec<(u64, u64)>,
    /// The last error while putting back.
    pub error: Option<String>,
}

impl ScrubReport {
    /// As it is told to others.
    pub fn new(vdisk: &VdiskId, scrubbed: &Scrubbed) -> Self {
        let Scrubbed { filled, report } = scrubbed;
        let ranges =
            |ranges: &NumberRanges| ranges.iter().map(|range| (range.start().0, range.end().0)).collect();
        let stores = report.stores.iter().map(|store| ScrubbedStore {
            address: store.address.clone(),
            counted: store.counted,
            missing: ranges(&store.missing),
            damaged: ranges(&store.damaged),
            refilled: ranges(&store.refilled),
            error: store.error.clone(),
        });
        Self {
            vdisk: vdisk.to_string(),
            aggregations: report.aggregations,
            whole: report.is_whole(),
            unreadable: ranges(&report.unreadable),
            filled_stores: filled.clone(),
            stores: stores.collect(),
        }
    }
}

/// For a person, on several lines.
impl fmt::Display for ScrubReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |ranges: &[(u64, u64)]| ranges.iter().map(|(from, to)| to - from + 1).sum::<u64>();
        writeln!(f, "vdisk {}: {} aggregations", self.vdisk, self.aggregations)?;
        for store in &self.stores {
            let (missing, damaged) = (count(&store.missing), count(&store.damaged));
            write!(f, "  {}: ", store.address)?;
            match missing + damaged {
                _ if !store.counted => write!(f, "did not take part")?,
                _ if self.filled_stores.contains(&store.address) => {
                    write!(f, "came back empty, and was filled")?
                }
                0 => write!(f, "whole")?,
                _ => {
                    let refilled = count(&store.refilled);
                    write!(f, "{missing} shards missing, {damaged} damaged; {refilled} put back")?;
                }
            }
            match &store.error {
                Some(error) => writeln!(f, " ({error})")?,
                None => writeln!(f)?,
            }
        }
        f.write_str(match (self.whole, self.unreadable.is_empty()) {
            (true, _) => "every store holds every shard",
            (_, false) => {
                "DATA IS LOST: of some aggregations too few shards are left; bring a lost store back and scrub again"
            }
            (_, true) => "everything can be read, but not every store holds its shards; see above, mend that store and scrub again",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_json_and_tells_a_person_what_to_do() {
        let store = |address: &str| ScrubbedStore {
            address: address.to_owned(),
            counted: true,
            missing: vec![],
            damaged: vec![],
            refilled: vec![],
            error: None,
        };
        let mut report = ScrubReport {
            vdisk: "vda".to_owned(),
            aggregations: 9,
            whole: true,
            unreadable: vec![],
            filled_stores: vec!["file:b".to_owned()],
            stores: vec![store("file:a"), store("file:b"), store("file:c"), store("file:d")],
        };
        report.stores[2].missing = vec![(1, 3), (7, 7)];
        report.stores[2].refilled = vec![(1, 3)];
        report.stores[2].error = Some("is full".to_owned());
        report.stores[3].counted = false;
        report.stores[3].error = Some("is not available".to_owned());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<ScrubReport>(&json).unwrap(), report);
        let said = "vdisk vda: 9 aggregations\n  file:a: whole\n  file:b: came back empty, and was filled\n  \
            file:c: 4 shards missing, 0 damaged; 3 put back (is full)\n  file:d: did not take part (is not available)\n";
        assert_eq!(report.to_string(), format!("{said}every store holds every shard"));
        report.whole = false;
        assert!(report.to_string().ends_with("scrub again"));
        report.unreadable = vec![(5, 5)];
        assert!(report.to_string().contains("DATA IS LOST"));
    }
}
