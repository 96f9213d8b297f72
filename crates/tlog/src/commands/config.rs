//! `tlog config`: a settings file to start from, a check of one, what is in force, and the documents of vdisks and clusters.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;
use tlog_config::{
    Configuration, DocumentKey, ImportError, ImportOptions, ImportReport, SourceAddress, open_source,
};

use crate::documents::clusters_with_logs;
use crate::logging;

use crate::settings::{self, DocumentSettings, Settings, SettingsArgs};

/// Prints a settings file in which every setting stands, with what it means, at its default; or works on documents of vdisks and
/// clusters.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    tlog config > tlog.toml                a file to start from: everything in it is commented out\n  \
    tlog config --check tlog.toml          exit status 0 where the file is right\n  \
    tlog config --show                     what is in force here, and where each value comes from\n  \
    tlog config check vdisks.yaml          documents of vdisks and clusters: everything that is wrong with them\n  \
    tlog config import vdisks.yaml --etcd http://127.0.0.1:2379"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Says whether this settings file is right, and what is wrong with it
    #[arg(long, value_name = "FILE", conflicts_with = "show")]
    check: Option<PathBuf>,
    /// Prints what is in force, from file, variables and flags; no secrets
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArguments),
    Import(ImportArguments),
}

/// Looks at documents of vdisks and clusters, and says everything that is wrong with them.
///
/// Also whether each storage cluster that has logs has as many stores as these settings need. Connects to no store.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog config check vdisks.yaml\n  \
    tlog config check http://127.0.0.1:2379 --etcd-user tlog --etcd-password-file /etc/tlog/etcd\n\n\
    Exit status: 0 nothing is wrong; 1 something is, or the source cannot be read.")]
struct CheckArguments {
    /// A YAML file, or endpoints of etcd with commas between them
    source: String,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Writes the documents of a YAML file to etcd.
///
/// Only what differs is written, and nothing where anything in the file is wrong. What refers to a cluster is written after it, so that
/// servers which are watching never see a reference to nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog config import vdisks.yaml --etcd http://127.0.0.1:2379 --dry-run      what would be written\n  \
    tlog config import vdisks.yaml --etcd http://10.0.0.1:2379,http://10.0.0.2:2379\n  \
    tlog config import vdisks.yaml --etcd https://etcd.lan:2379 --etcd-ca-file ca.pem --prune")]
struct ImportArguments {
    /// The YAML file
    file: PathBuf,
    /// Endpoints of etcd
    #[arg(long, value_name = "ENDPOINT,...")]
    etcd: String,
    /// Removes documents from etcd that are not in the file: servers close vdisks that are removed
    #[arg(long)]
    prune: bool,
    /// Says what would be done, and does nothing
    #[arg(long)]
    dry_run: bool,
    /// Prints what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Some(Command::Check(arguments)) => check(arguments).await,
        Some(Command::Import(arguments)) => import(arguments).await,
        None => settings_file(&arguments),
    }
}

fn settings_file(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match &arguments.check {
        Some(path) => {
            let settings = Settings::from_file(path)?;
            for warning in settings.warnings() {
                eprintln!("tlog: warning: {warning}");
            }
            writeln!(out, "{} is right: {}", path.display(), settings.redundancy)?;
        }
        None if arguments.show => out.write_all(settings::effective(&arguments.settings)?.as_bytes())?,
        None => out.write_all(settings::default_file().as_bytes())?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The settings with this source, whatever source they name themselves.
fn settings_with(source: &str, arguments: &SettingsArgs) -> anyhow::Result<Settings> {
    let source = SourceAddress::parse(source)?;
    let settings = match &source {
        // What is set for etcd is of no account then.
        SourceAddress::File(_) => Settings::load(arguments)?,
        SourceAddress::Etcd(_) => {
            Settings::load(&arguments.clone().with("config-source", source.to_string()))?
        }
    };
    let etcd = settings.documents.map(|documents| documents.etcd).unwrap_or_default();
    let documents = Some(DocumentSettings { source, etcd });
    Ok(Settings { documents, ..settings })
}

async fn check(arguments: CheckArguments) -> anyhow::Result<ExitCode> {
    let settings = settings_with(&arguments.source, &arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let Some(documents) = &settings.documents else { bail!("no source") };
    let source = open_source(&documents.source, &documents.etcd)?;
    let problems = tlog_config::check(&*source).await?;
    let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let mut found = None;
    if problems.is_empty() {
        let configuration = Configuration::open(source).await?;
        let mut clusters = Vec::new();
        for cluster in clusters_with_logs(&configuration) {
            match settings.on_cluster(&cluster) {
                Ok(settings) => clusters.push(format!("{} ({})", cluster.id, settings.redundancy)),
                Err(error) => problems.push(error.to_string()),
            }
        }
        found = Some((configuration.health().vdisks, clusters));
    }
    let mut out = io::stdout().lock();
    if arguments.json {
        let vdisks = found.map(|(vdisks, _)| vdisks);
        let told = json!({ "source": documents.source.to_string(), "problems": problems, "vdisks": vdisks });
        writeln!(out, "{told}")?;
    } else {
        problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))?;
        if let Some((vdisks, clusters)) = found.filter(|_| problems.is_empty()) {
            let on = if clusters.is_empty() { "none".to_owned() } else { clusters.join(", ") };
            writeln!(
                out,
                "{} is right: {vdisks} vdisks; storage clusters with logs: {on}",
                documents.source
            )?;
        }
    }
    out.flush()?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn import(arguments: ImportArguments) -> anyhow::Result<ExitCode> {
    let settings = settings_with(&arguments.etcd, &arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let etcd = match &settings.documents {
        Some(documents) => match &documents.source {
            SourceAddress::Etcd(endpoints) => (endpoints, &documents.etcd),
            SourceAddress::File(_) => {
                bail!("--etcd is a file; give endpoints of etcd, such as http://127.0.0.1:2379")
            }
        },
        None => bail!("--etcd is empty; give endpoints of etcd, such as http://127.0.0.1:2379"),
    };
    let origin = arguments.file.display().to_string();
    let text =
        std::fs::read_to_string(&arguments.file).with_context(|| format!("{origin} cannot be read"))?;
    let options = ImportOptions { prune: arguments.prune, dry_run: arguments.dry_run };
    let report = match tlog_config::import(&origin, &text, etcd.0, etcd.1, options).await {
        Ok(report) => report,
        Err(ImportError::Problems(problems)) => {
            let problems: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            bail!("nothing was written, there are problems:{}", problems.concat());
        }
        Err(error) => return Err(error.into()),
    };
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", as_json(&report, arguments.dry_run))?,
        false => write!(out, "{}", in_words(&report, arguments.dry_run))?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(report: &ImportReport, dry_run: bool) -> serde_json::Value {
    let names = |keys: &[DocumentKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "dry_run": dry_run,
        "put": names(&report.put),
        "unchanged": names(&report.unchanged),
        "deleted": names(&report.deleted),
        "others": names(&report.others),
        "transactions": report.transactions,
    })
}

fn in_words(report: &ImportReport, dry_run: bool) -> String {
    let ImportReport { put, unchanged, deleted, others, .. } = report;
    let (would, not) = if dry_run { ("would be ", "; nothing was done") } else { ("", "") };
    let mut lines = String::new();
    for (keys, done) in [(put, "put"), (deleted, "deleted")] {
        keys.iter().for_each(|key| lines.push_str(&format!("{would}{done}: {key}\n")));
    }
    let (put, unchanged, deleted) = (put.len(), unchanged.len(), deleted.len());
    lines.push_str(&format!("{put} {would}put, {unchanged} as they were, {deleted} {would}deleted{not}\n"));
    if !others.is_empty() {
        lines.push_str(&format!(
            "{} documents are in etcd and not in the file; --prune removes them, --json names them\n",
            others.len()
        ));
    }
    lines
}
