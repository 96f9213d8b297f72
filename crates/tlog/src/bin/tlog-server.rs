//! `tlog-server`: takes the writes of virtual disks and keeps them.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use tlog::service::{Service, reload_tls};
use tlog::settings::{Settings, SettingsArgs};
use tlog_config::Configuration;
use tlog_server::ServerTls;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Takes the writes of virtual disks over TCP and keeps them, encrypted and split over several stores.
///
/// Stops on SIGTERM or SIGINT: what it has received is made durable first. Exits 0 where that worked, 1 where not everything
/// is durable (clients keep what was not acknowledged and send it again) or where it could not start. On SIGHUP the files of TLS and
/// a file with documents of vdisks are read again.
#[derive(Parser)]
#[command(
    name = "tlog-server",
    version,
    after_help = "Examples:\n  \
        tlog-server                                  keep everything in ./tlog-data, on 6 store directories\n  \
        tlog-server --data-dir /srv/tlog --admin-listen 127.0.0.1:11212\n  \
        tlog-server -k 2 -m 1 --storage file:/disk-a/tlog,file:/disk-b/tlog,file:/disk-c/tlog --key-file /etc/tlog/key\n\n\
        'tlog config' prints a file with every setting and what it means."
)]
struct Arguments {
    #[command(flatten)]
    settings: SettingsArgs,
}

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tlog::memory::keep_large_buffers();
    // The server has no other arguments, so its settings are what a short help is asked for.
    let command = Arguments::command().mut_args(|arg| arg.hide_short_help(false));
    let arguments = Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let settings = match Settings::load(&arguments.settings) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("tlog-server: {}", tlog::words::of_error(&error.into()));
            return ExitCode::FAILURE;
        }
    };
    tlog::logging::init(&settings.logging);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tlog-server: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tlog-server: {}", tlog::words::of_error(&error));
            ExitCode::FAILURE
        }
    }
}

/// Answers whether everything that was received is durable.
async fn serve(settings: &Settings) -> anyhow::Result<bool> {
    // Before the first byte is taken: a signal must not find the default action.
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let service = Service::start(settings).await?;
    let mut out = std::io::stdout();
    // Whoever started this may have closed the other end; that is no reason to stop.
    let _ = writeln!(out, "listening on {}", service.address());
    if let Some(admin) = service.admin_address() {
        let _ = writeln!(out, "admin endpoint on {admin}");
    }
    let _ = out.flush();

    let shutdown = CancellationToken::new();
    let signals = tokio::spawn(stop_on_signal(terminate, interrupt, shutdown.clone()));
    let reloads =
        tokio::spawn(reload_on_signal(hangup, service.tls().cloned(), service.configuration().cloned()));
    let report = service.run(shutdown).await;
    signals.abort();
    reloads.abort();
    for vdisk in report.vdisks.iter().filter(|vdisk| vdisk.error.is_some()) {
        let error = vdisk.error.as_deref().unwrap_or_default();
        eprintln!("tlog-server: vdisk {}: not everything is durable: {error}", vdisk.vdisk);
    }
    if report.all_durable() {
        let _ = writeln!(out, "stopped, everything is durable");
    }
    Ok(report.all_durable())
}

async fn stop_on_signal(mut terminate: Signal, mut interrupt: Signal, shutdown: CancellationToken) {
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "asked to stop");
    shutdown.cancel();
}

async fn reload_on_signal(mut hangup: Signal, tls: Option<ServerTls>, documents: Option<Configuration>) {
    while hangup.recv().await.is_some() {
        if tls.is_none() && documents.is_none() {
            tracing::info!(
                signal = "SIGHUP",
                "there are neither files of TLS nor documents to be read again; nothing done"
            );
        }
        if let Some(tls) = tls.clone() {
            // Files may be on a disk that does not answer. It fails only where the runtime is shutting down.
            let _ = tokio::task::spawn_blocking(move || reload_tls(&tls)).await;
        }
        if let Some(documents) = &documents {
            documents.reload().await;
            let health = documents.health();
            match &health.away {
                None => tracing::info!(
                    signal = "SIGHUP",
                    vdisks = health.vdisks,
                    problems = health.problems.len(),
                    "the documents of vdisks and clusters were read again"
                ),
                Some(away) => tracing::warn!(
                    signal = "SIGHUP",
                    because = away.why,
                    "the documents of vdisks and clusters cannot be read; what was in force stays"
                ),
            }
        }
    }
}
