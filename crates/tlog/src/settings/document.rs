//! The default file and the tables of the documentation, made from the table of settings.

use std::fmt::Write;

use super::SettingsError;
use super::layers::Merged;
use super::table::{DEFAULT_FILE, Group, Kind, Preset, SETTINGS, Setting};

/// A settings file in which everything is commented out and stands at its default.
pub fn default_file() -> String {
    let introduction = format!(
        "Settings of tlog-server and tlog. Put this file, as {DEFAULT_FILE}, where they are started, or name it with -c FILE. \
         Everything is at its default: take the # away from what you change. A setting can also be an environment variable \
         (flush-size: TLOG_FLUSH_SIZE), which wins over this file, or a flag (--flush-size), which wins over both."
    );
    let mut out = String::new();
    for line in wrapped(&introduction, 76) {
        write_line(&mut out, &format!("# {line}"));
    }
    for group in Group::ALL {
        write_line(&mut out, &format!("\n# {} {}", group.title(), "-".repeat(76 - group.title().len())));
        for setting in of_group(group) {
            out.push('\n');
            for line in wrapped(setting.help, 76) {
                write_line(&mut out, &format!("# {line}"));
            }
            if let Preset::Unset { means, .. } = setting.preset {
                for line in wrapped(&format!("Not set: {means}. For example:"), 76) {
                    write_line(&mut out, &format!("# {line}"));
                }
            }
            write_line(&mut out, &format!("#{} = {}", setting.key, setting.literal()));
        }
    }
    out
}

/// The same as tables in Markdown.
pub fn markdown() -> String {
    let mut out = String::new();
    for group in Group::ALL {
        write_line(&mut out, &format!("### {}\n", group.title()));
        write_line(&mut out, "| setting | flag | variable | default | what it does |\n|---|---|---|---|---|");
        for setting in of_group(group) {
            let Setting { key, value_name, help, .. } = setting;
            let short = setting.short.map(|short| format!("`-{short}`, ")).unwrap_or_default();
            let value = match setting.kind {
                Kind::Switch => String::new(),
                _ => format!(" {}", value_name.replace('|', "\\|")),
            };
            let default = match setting.preset {
                Preset::Is(literal) => format!("`{}`", literal.trim_matches('"')),
                Preset::Unset { means, .. } => means.to_owned(),
            };
            let line =
                format!("| `{key}` | {short}`--{key}{value}` | `{}` | {default} | {help} |", setting.env());
            write_line(&mut out, &line);
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// What is in force, and why.
pub(super) fn effective(merged: &Merged) -> Result<String, SettingsError> {
    let mut out = String::new();
    for setting in SETTINGS {
        let line = match merged.given(setting.key)? {
            None => match setting.preset {
                Preset::Unset { means, .. } => format!("# {} is not set: {means}", setting.key),
                Preset::Is(_) => continue,
            },
            Some(given) => {
                let value = match setting.kind {
                    Kind::Secret => "\"<secret>\"".to_owned(),
                    Kind::List => {
                        let items =
                            given.text.split(',').map(|item| serde_json::Value::from(without_password(item)));
                        serde_json::Value::Array(items.collect()).to_string()
                    }
                    _ if given.text.parse::<u64>().is_ok() || given.text.parse::<bool>().is_ok() => {
                        given.text
                    }
                    // A JSON text is a TOML text too.
                    _ => serde_json::Value::from(given.text).to_string(),
                };
                format!("{} = {value}  # {}", setting.key, given.place.replace('\n', " "))
            }
        };
        write_line(&mut out, &line);
    }
    Ok(out)
}

fn without_password(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://<secret>@{place}"),
        _ => address.to_owned(),
    }
}

fn of_group(group: Group) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| setting.group == group)
}

fn write_line(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("writing to a string cannot fail");
}

/// The words of a text in lines of at most `width` characters, where no word is longer.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![];
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}
