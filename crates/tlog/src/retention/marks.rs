//! Names of moments.

use anyhow::bail;
use tlog_codec::{Mark, MarkName, Record};
use tlog_player::{Moment, ReadOptions};

use super::{MarkReport, Work, place_of};

pub(super) async fn mark(work: &mut Work<'_>, name: &str, moment: Moment) -> anyhow::Result<MarkReport> {
    let name = MarkName::new(name)?;
    let reader = work.reader_of_now().await?;
    let reached = reader.locate(&work.keys, moment, &ReadOptions::default()).await?;
    let place = place_of(&reached);
    let before = reader.marks(&work.keys).await?.into_iter().find(|mark| mark.name == name);
    let stored = work.store_record(Record::Mark(Mark { name: name.clone(), place })).await?;
    Ok(MarkReport::new(&work.vdisk, &name, Some(place), before.map(|mark| mark.place), stored.number))
}

pub(super) async fn unmark(work: &mut Work<'_>, name: &str) -> anyhow::Result<MarkReport> {
    let name = MarkName::new(name)?;
    let marks = work.reader().await?.marks(&work.keys).await?;
    let Some(before) = marks.iter().find(|mark| mark.name == name) else {
        let known: Vec<&str> = marks.iter().map(|mark| mark.name.as_str()).collect();
        match known[..] {
            [] => bail!("vdisk {} has no mark {name}, and no other", work.vdisk),
            _ => bail!("vdisk {} has no mark {name}; it has {}", work.vdisk, known.join(", ")),
        }
    };
    let stored = work.store_record(Record::MarkRemoved(name.clone())).await?;
    Ok(MarkReport::new(&work.vdisk, &name, None, Some(before.place), stored.number))
}
