//! `tlog slave status`: what a slave holds, and whether it can be switched to.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};
use tlog_player::LogReader;
use tlog_player::slave::{
    NeedsResync, Outlook, SlaveLag, SlaveState, SlaveSurvey, Standing, lag_behind, outlook,
};
use tlog_proto::VdiskId;
use tlog_store::slave::{SlavePoint, SlavePosition};

use super::slave::Found;
use crate::slaves::{show_lag, show_position, show_restoring};
use crate::{moment, reading};

/// How often it is looked while somebody applies writes between two answers.
const MOST_LOOKS: u32 = 10;

/// Says how a slave is.
pub(super) async fn show(found: &Found, vdisk: &VdiskId, as_json: bool) -> anyhow::Result<ExitCode> {
    let seen = look(found, vdisk).await;
    let mut out = io::stdout().lock();
    match as_json {
        true => writeln!(out, "{}", seen.as_json(vdisk))?,
        false => write!(out, "{}", seen.in_words(vdisk))?,
    }
    out.flush()?;
    Ok(if seen.is_usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was found of a slave and its log.
struct Seen<'a> {
    cluster: &'a str,
    survey: SlaveSurvey,
    /// None where stores do not answer.
    state: Option<SlaveState>,
    /// What a syncer would do with it; none where stores do not answer, an error where the log cannot be asked.
    outlook: Option<anyhow::Result<Outlook>>,
    /// None where stores do not answer.
    lag: Option<anyhow::Result<SlaveLag>>,
    log: anyhow::Result<LogReader>,
}

async fn look<'a>(found: &'a Found, vdisk: &VdiskId) -> Seen<'a> {
    let Found { settings, cluster, slave, .. } = found;
    let mut before = None;
    let mut looks = 0;
    loop {
        looks += 1;
        // First the slave: what is applied meanwhile does not make it look as if it were ahead.
        let survey = slave.survey().await;
        let state = survey.state();
        let log = reading::open(settings, vdisk).await;
        let outlook = match &state {
            None => None,
            Some(state) => Some(outlook_of(found, vdisk, state, &log).await),
        };
        // Stores answer one after the other, and a syncer goes on between.
        let lacks_something = matches!(
            outlook,
            Some(Ok(Outlook::NeedsResync(
                NeedsResync::StoreLostWrites { .. } | NeedsResync::MetadataLost { .. }
            )))
        );
        if lacks_something && looks < MOST_LOOKS && before.replace(state.clone()) != Some(state.clone()) {
            continue;
        }
        let lag = match &state {
            None => None,
            Some(state) => Some(lag_of(state, &log).await),
        };
        return Seen { cluster, survey, state, outlook, lag, log };
    }
}

async fn outlook_of(
    found: &Found,
    vdisk: &VdiskId,
    state: &SlaveState,
    log: &anyhow::Result<LogReader>,
) -> anyhow::Result<Outlook> {
    // For these the log is not needed.
    match state.standing() {
        Standing::Stopped => return Ok(Outlook::Stopped),
        Standing::Restoring(restoring) => return Ok(Outlook::Restoring(restoring)),
        Standing::NeedsResync(reason) => return Ok(Outlook::NeedsResync(reason)),
        Standing::Blank | Standing::Legacy { .. } | Standing::Filled { .. } => {}
    }
    let log = log.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let keys = reading::keys_of(&found.settings, vdisk)?;
    outlook(log, &keys, &found.slave, state).await.context("the log cannot be read")
}

async fn lag_of(state: &SlaveState, log: &anyhow::Result<LogReader>) -> anyhow::Result<SlaveLag> {
    let log = log.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let nothing = SlavePosition { point: SlavePoint::START, last: None };
    Ok(lag_behind(log, &state.position().unwrap_or(nothing)).await?)
}

impl Seen<'_> {
    /// Whether it can be switched to.
    fn is_usable(&self) -> bool {
        matches!(&self.outlook, Some(Ok(Outlook::Stopped | Outlook::Filled(_))))
    }

    /// The lag, where it means something: of what is not of this log, or nobody's slave any more, it says nothing.
    fn lag(&self) -> Option<&anyhow::Result<SlaveLag>> {
        let is_slave = match &self.outlook {
            Some(Ok(Outlook::NeedsResync(_) | Outlook::Restoring(_) | Outlook::Stopped)) | None => false,
            Some(Ok(Outlook::Blank | Outlook::Legacy(_) | Outlook::Filled(_)) | Err(_)) => true,
        };
        self.lag.as_ref().filter(|_| is_slave)
    }

    fn silent(&self) -> String {
        let SlaveSurvey { record: (_, record), parts } = &self.survey;
        let parts = parts.iter().filter_map(|(_, part)| part.as_ref().err());
        let silent = record.as_ref().err().into_iter().chain(parts).map(ToString::to_string);
        silent.collect::<Vec<_>>().join("; ")
    }

    fn as_json(&self, vdisk: &VdiskId) -> Value {
        let (kind, because) = match &self.outlook {
            None => ("away", Some(self.silent())),
            Some(Err(error)) => ("unknown", Some(format!("{error:#}"))),
            Some(Ok(Outlook::Stopped)) => ("stopped", None),
            Some(Ok(Outlook::Restoring(_))) => ("restoring", None),
            Some(Ok(Outlook::Blank)) => ("blank", None),
            Some(Ok(Outlook::Legacy(_))) => ("legacy", None),
            Some(Ok(Outlook::Filled(_))) => ("filled", None),
            Some(Ok(Outlook::NeedsResync(why))) => ("needs_resync", Some(why.to_string())),
        };
        let state = self.state.as_ref();
        json!({
            "vdisk": vdisk.as_str(),
            "cluster": self.cluster,
            "state": kind,
            "because": because,
            "restoring": match &self.outlook {
                Some(Ok(Outlook::Restoring(restoring))) => Some(show_restoring(restoring)),
                _ => None,
            },
            "position": state.and_then(SlaveState::position).as_ref().map(show_position),
            "blocks": state.map(SlaveState::blocks),
            "lag": self.lag().and_then(|lag| lag.as_ref().ok()).map(show_lag),
            "log_last_aggregation": self.log.as_ref().ok().map(|log| log.extent().last.0),
            "stores": self.survey.parts.iter().map(|(address, part)| json!({
                "address": address,
                "blocks": part.as_ref().ok().map(|part| part.blocks),
                "error": part.as_ref().err().map(ToString::to_string),
            })).collect::<Vec<_>>(),
        })
    }

    fn in_words(&self, vdisk: &VdiskId) -> String {
        let mut lines = format!("vdisk {vdisk}, slave on storage cluster {}\n", self.cluster);
        let mut say = |what: &str, words: String| lines.push_str(&format!("  {what:<10} {words}\n"));
        say(
            "state",
            match &self.outlook {
                None => format!("not known, stores do not answer: {}", self.silent()),
                Some(Err(error)) => {
                    format!("its stores are as they were left; whether that is this log is not known: {error:#}")
                }
                Some(Ok(Outlook::Stopped)) => {
                    "stopped: it is somebody's primary, nothing is applied to it".to_owned()
                }
                Some(Ok(Outlook::Restoring(restoring))) => format!(
                    "half restored ({} of {} aggregations): no disk until the restore is complete",
                    restoring.aggregations.1, restoring.aggregations.0
                ),
                Some(Ok(Outlook::Blank)) => "empty: nothing was applied to it yet".to_owned(),
                Some(Ok(Outlook::Legacy(_))) => {
                    "filled by a server of 1.1.0-alpha, which wrote blocks first and where it was later: no disk at one moment until a \
                     syncer has gone on from there"
                        .to_owned()
                }
                Some(Ok(Outlook::Filled(_))) => "the disk at one moment of its log".to_owned(),
                Some(Ok(Outlook::NeedsResync(why))) => format!("needs a resync: {why}; {}", why.remedy()),
            },
        );
        if let Some(position) = self.state.as_ref().and_then(SlaveState::position) {
            let last = position.last.map(|last| {
                format!(", sequence {} of {}", last.position.sequence, moment::show(last.timestamp))
            });
            say("holds", format!("aggregation {}{}", position.point.aggregation, last.unwrap_or_default()));
        }
        if let Some(state) = &self.state {
            say("blocks", state.blocks().to_string());
        }
        match self.lag() {
            Some(Ok(SlaveLag { aggregations: 0, .. })) => say("behind", "nothing".to_owned()),
            Some(Ok(SlaveLag { aggregations, blocks, since })) => {
                let blocks = blocks.map(|blocks| format!(", {blocks} writes")).unwrap_or_default();
                let since = since.map(|since| format!(", since {}", moment::show(since))).unwrap_or_default();
                say("behind", format!("{aggregations} aggregations{blocks}{since}"))
            }
            Some(Err(error)) => say("behind", format!("not known: {error:#}")),
            None => say("behind", "not known".to_owned()),
        }
        lines
    }
}
