//! `tlog store`: the stores themselves.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Subcommand;
use hyper::Method;
use tlog_proto::VdiskId;

use super::progress;
use crate::cli::USAGE;
use crate::replacing::{self, ReplaceReport, ReplaceRequest};
use crate::running::{self, OfflineFlag};
use crate::settings::{Settings, SettingsArgs, Storage};
use crate::storage::FlusherStorage;
use crate::stores::Stores;
use crate::{keys, logging};

/// Changes the stores that logs are on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog store replace --all 10.0.0.3:6379 10.0.0.9:6379\n  \
    tlog store replace vda file:/disk-c/tlog file:/disk-x/tlog")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replace(ReplaceArguments),
}

/// Puts a new, empty store in the place of one that is lost or to be retired, and fills it.
///
/// The new store gets the old one's shards, made anew from the others, and counts from then on; what the old one has is not
/// needed and not touched. Where a running server has the stores, it does it while it serves; then change its storage setting
/// too, before it is started the next time. Where more stores were lost than a log can be opened without, this command is the
/// word of the operator that they are gone for good: name them all in one command. It goes on as long as nothing that was
/// acknowledged can be missing, and says so where that cannot be told. An empty store under the old address is named as OLD and as
/// NEW.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog store replace --all 10.0.0.3:6379 10.0.0.9:6379     for every vdisk\n  \
    tlog store replace vda 10.0.0.3:6379 10.0.0.9:6379       for one\n  \
    tlog store replace --all OLD-1 NEW-1 OLD-2 NEW-2         two that were lost together\n\n\
    Exit status: 0 the new stores count in every log; 1 not so, with the reasons; 64 wrong usage.")]
struct ReplaceArguments {
    /// For every vdisk that the stores know
    #[arg(long)]
    all: bool,
    /// A vdisk (without --all), then the old and the new address, as in the storage setting; several pairs where several
    /// stores are gone
    #[arg(required = true, value_name = "VDISK|OLD NEW")]
    what: Vec<String>,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: OfflineFlag,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Replace(arguments) => replace(arguments).await,
    }
}

async fn replace(arguments: ReplaceArguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let request = match request(arguments.all, arguments.what) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("tlog: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let settings = match &request.vdisk {
        Some(vdisk) => settings.of_vdisk(&VdiskId::new(vdisk)?).await?,
        None if settings.storage == Storage::Documents => bail!(
            "the stores of each vdisk are in its storage cluster's document: change dataStorage there, and running servers fill the \
             new store; where too many are lost for that, name the vdisk instead of --all"
        ),
        None => settings,
    };
    let report = match running::server(&settings, arguments.offline).await? {
        Some(address) => {
            eprintln!("the server at {address} fills the new stores ...");
            let body = serde_json::to_vec(&request)?.into();
            running::ask_server(&address, Method::POST, "/stores/replace", body, "replace stores").await?
        }
        None => directly(&settings, &request).await?,
    };
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => writeln!(out, "{report}")?,
    }
    out.flush()?;
    if report.is_done() {
        match settings.documents {
            None => eprintln!(
                "change the storage setting to the new addresses before a server is started the next time"
            ),
            Some(_) => eprintln!(
                "change the document of the storage cluster to the new addresses, so that others find them too"
            ),
        }
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// VDISK OLD NEW [OLD NEW ...], without the first where all are meant.
fn request(all: bool, mut what: Vec<String>) -> anyhow::Result<ReplaceRequest> {
    let vdisk = match all {
        true => None,
        false => Some(what.remove(0)),
    };
    if what.is_empty() || !what.len().is_multiple_of(2) {
        bail!("say which store is replaced by which: [VDISK | --all] OLD NEW, as many pairs as there are");
    }
    if let Some(name) = &vdisk
        && VdiskId::new(name).is_err()
    {
        bail!("{name:?} is no name of a vdisk; for every vdisk say --all OLD NEW");
    }
    let mut pairs = Vec::new();
    let mut what = what.into_iter();
    while let (Some(old), Some(new)) = (what.next(), what.next()) {
        pairs.push((old, new));
    }
    Ok(ReplaceRequest { vdisk, replace: pairs })
}

async fn directly(settings: &Settings, request: &ReplaceRequest) -> anyhow::Result<ReplaceReport> {
    let keys = keys::load(settings)?;
    let stores = Stores::for_writing(settings, "tlog store replace").await?;
    let opener = stores.opener().clone();
    let storage = FlusherStorage::new(settings, stores.all, Some(Arc::new(keys.keyring)))?;
    let bar = progress::counting("filling");
    let replaced = replacing::replace(&storage, &opener, request, |vdisk, missing| {
        bar.set_message(format!("filling vdisk {vdisk}: {missing} shards to go"));
    });
    let replaced = replaced.await;
    bar.finish_and_clear();
    Ok(replaced?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vdisk_and_pairs_are_told_apart() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let one = request(false, words(&["vda", "a:1", "b:1"])).unwrap();
        assert_eq!((one.vdisk.as_deref(), one.replace.len()), (Some("vda"), 1));
        let two = request(true, words(&["a:1", "b:1", "c:1", "d:1"])).unwrap();
        assert_eq!((two.vdisk, two.replace[1].1.as_str()), (None, "d:1"));
        for (all, bad) in [(true, &["a:1"][..]), (false, &["vda"]), (false, &["vda", "a:1"])] {
            assert!(request(all, words(bad)).is_err(), "{bad:?}");
        }
    }
}
