//! The flags: one for every setting, made from the table.

use std::fmt;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::table::{Kind, Preset, SETTINGS, Setting};

const CONFIG: &str = "config";
const HEADING: &str = "Settings (also in tlog.toml and TLOG_* variables)";

/// What a command line says about settings. Use it with `#[command(flatten)]`.
#[derive(Clone, Default)]
pub struct SettingsArgs {
    /// The file to read in place of `tlog.toml`.
    pub config: Option<PathBuf>,
    /// Key as written (a secret's may end in `-file`) and value, in the order of the table.
    pub(super) given: Vec<(String, String)>,
}

impl SettingsArgs {
    /// Sets a setting as its flag does: `("data-dir", "/srv/tlog")`.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.given.push((key.to_owned(), value.into()));
        self
    }

    /// Whether this sets it.
    pub fn has(&self, key: &str) -> bool {
        self.given.iter().any(|(given, _)| given == key)
    }

    /// The same as arguments of a program that takes settings, in whatever directory it is started. Secrets that were given as such would
    /// be seen by everybody who lists processes.
    pub fn command_line(&self) -> std::io::Result<Vec<String>> {
        let config = self.config.as_deref().map(std::path::absolute).transpose()?;
        let config = config.map(|path| format!("--{CONFIG}={}", path.display()));
        let given = self.given.iter().map(|(key, value)| format!("--{key}={value}"));
        Ok(config.into_iter().chain(given).collect())
    }
}

/// Not derived: a value may be a secret.
impl fmt::Debug for SettingsArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.given.iter().map(|(key, _)| key).collect();
        f.debug_struct("SettingsArgs").field("config", &self.config).field("given", &keys).finish()
    }
}

impl clap::Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .short('c')
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("File with settings [default: tlog.toml, if it is there] [env: TLOG_CONFIG]")
            .help_heading(HEADING);
        let mut command = command.arg(config);
        for setting in SETTINGS {
            command = command.arg(flag(setting));
            if setting.kind == Kind::Secret {
                command = command.arg(file_flag(setting));
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self { config: matches.get_one::<PathBuf>(CONFIG).cloned(), given: Vec::new() };
        for setting in SETTINGS {
            let file = (setting.kind == Kind::Secret).then_some(setting.file_key);
            for key in std::iter::once(setting.key).chain(file) {
                if let Some(values) = matches.get_many::<String>(key) {
                    let values: Vec<&str> = values.map(String::as_str).collect();
                    args.given.push((key.to_owned(), values.join(",")));
                }
            }
        }
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(setting: &'static Setting) -> Arg {
    let default = match setting.preset {
        Preset::Is(literal) => literal.trim_matches('"'),
        Preset::Unset { means, .. } => means,
    };
    // What is after the first sentence stands in the documentation and the default file.
    let first = setting.help.split_inclusive(". ").next().unwrap_or_default();
    let first =
        first.split_inclusive(": ").next().unwrap_or_default().trim().trim_end_matches(['.', ':', ';']);
    let arg = Arg::new(setting.key)
        .long(setting.key)
        .value_name(setting.value_name)
        .value_parser(ValueParser::string())
        .help(format!("{first} [default: {default}]"))
        .hide_short_help(!setting.everyday)
        .help_heading(HEADING);
    let arg = match setting.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match setting.kind {
        Kind::List => arg.action(ArgAction::Append),
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::One | Kind::Secret => arg,
    }
}

fn file_flag(setting: &'static Setting) -> Arg {
    Arg::new(setting.file_key)
        .long(setting.file_key)
        .value_name("FILE")
        .value_parser(ValueParser::string())
        .help(format!("File that has the {}", setting.key))
        .hide_short_help(true)
        .help_heading(HEADING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(arguments: &[&str]) -> Result<SettingsArgs, clap::Error> {
        let command = SettingsArgs::augment_args(Command::new("test"));
        SettingsArgs::from_arg_matches(&command.try_get_matches_from([&["test"], arguments].concat())?)
    }

    #[test]
    fn every_setting_has_a_flag_and_the_flags_fit_together() {
        SettingsArgs::augment_args(Command::new("test")).debug_assert();
        for setting in SETTINGS {
            let value = if setting.kind == Kind::Switch { "true" } else { "x" };
            let args = parse(&[&format!("--{}={value}", setting.key)]).unwrap();
            assert_eq!(args.given, [(setting.key.to_owned(), value.to_owned())]);
        }
    }

    #[test]
    fn flags_are_taken_in_all_their_forms() {
        let args = parse(&[
            "-k",
            "8",
            "-m3",
            "-w=9",
            "--storage",
            "a,b",
            "--storage",
            "c",
            "--slave-sync",
            "-c",
            "my.toml",
            "--nonce-file",
            "n",
        ])
        .unwrap();
        assert_eq!(args.config, Some("my.toml".into()));
        let given: Vec<(&str, &str)> = args.given.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        let expected = [
            ("storage", "a,b,c"),
            ("data-shards", "8"),
            ("parity-shards", "3"),
            ("write-quorum", "9"),
            ("slave-sync", "true"),
            ("nonce-file", "n"),
        ];
        assert_eq!(given, expected);
        assert!(parse(&["--flush-sise", "3"]).is_err());
        assert!(parse(&["-k", "1", "-k", "2"]).is_err());
    }

    #[test]
    fn what_was_given_can_be_passed_on_as_a_command_line() {
        let args = parse(&["-k", "8", "--slave-sync", "-c", "my.toml"]).unwrap();
        assert!(args.has("data-shards") && !args.has("parity-shards"));
        let line = args.command_line().unwrap();
        let again = parse(&line.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!(again.given, args.given);
        assert!(again.config.unwrap().is_absolute());
    }

    #[test]
    fn debug_shows_no_value() {
        let shown = format!("{:?}", parse(&["--private-key", "hush"]).unwrap());
        assert!(shown.contains("private-key") && !shown.contains("hush"), "{shown}");
    }
}
