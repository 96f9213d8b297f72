//! Progress bars, on standard error where that is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts things.
pub(crate) fn counting(what: &str) -> ProgressBar {
    bar(what, "{prefix} {wide_bar} {pos}/{len} {msg} {eta}")
}

/// Counts bytes.
pub(crate) fn of_bytes(what: &str) -> ProgressBar {
    bar(what, "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg} {eta}")
}

fn bar(what: &str, template: &str) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), target).with_style(style).with_prefix(what.to_owned())
}
