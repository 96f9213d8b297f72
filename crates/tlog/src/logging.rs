//! Log lines, as text or JSON, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogSettings};

/// Begins to log as a server does. Standard output stays free for what a command prints. Once in a process; a second call
/// does nothing.
pub fn init(settings: &LogSettings) {
    begin(&settings.filter, settings.format);
}

/// Begins to log as a person's tool does: where nobody asked for more, only what went wrong.
pub fn init_for_tool(settings: &LogSettings) {
    begin(if settings.filter_is_set { &settings.filter } else { "error" }, settings.format);
}

fn begin(filter: &str, format: LogFormat) {
    // The settings were checked, so the filter is legal; if not, too much is better than nothing.
    let filter = EnvFilter::builder().parse(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _already = match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(terminal)).try_init()
        }
    };
}
