//! Defaults, file, environment and flags, laid over each other.
//!
//! Each layer is brought into one form first - canonical keys, secrets read from their files, every value marked with
//! where it came from - then the `config` crate merges them, later layers winning key by key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, FileFormat, Format, Map, Source, Value, ValueKind};

use super::SettingsError;
use super::flags::SettingsArgs;
use super::table::{DEFAULT_FILE, ENV_PREFIX, Kind, Preset, SETTINGS, Setting};
use super::values::ValueFault;

/// Where a value came from that nobody gave.
pub(super) const BY_DEFAULT: &str = "by default";

/// Everything that settings are read from.
pub(super) struct Sources<'a> {
    pub(super) args: &'a SettingsArgs,
    pub(super) env: Vec<(OsString, OsString)>,
    /// Whether `tlog.toml` is read when no file is named.
    pub(super) default_file: Option<PathBuf>,
}

impl<'a> Sources<'a> {
    pub(super) fn of_process(args: &'a SettingsArgs) -> Self {
        Self { args, env: std::env::vars_os().collect(), default_file: Some(DEFAULT_FILE.into()) }
    }

    pub(super) fn merge(self) -> Result<Merged, SettingsError> {
        let (env, file_from_env) = environment(self.env)?;
        let file = match self.args.config.as_deref().or(file_from_env.as_deref()) {
            Some(path) => file(path)?,
            None => match self.default_file {
                Some(path) if path.exists() => file(&path)?,
                _ => Layer::default(),
            },
        };
        let flags = Layer::new(self.args.given.iter().map(|(key, value)| {
            let place = format!("on the command line (--{key})");
            (key.clone(), Value::new(Some(&place), value.as_str()))
        }))?;
        Merged::of([defaults()?, file, env, flags])
    }

    /// Only a file, over the defaults.
    pub(super) fn only_file(path: &Path) -> Result<Merged, SettingsError> {
        Merged::of([defaults()?, file(path)?])
    }
}

/// The settings as text, each with where it came from.
pub(super) struct Merged {
    values: BTreeMap<&'static str, Value>,
}

/// One setting as somebody gave it.
pub(super) struct Given {
    pub(super) text: String,
    pub(super) place: String,
}

impl Merged {
    fn of<const N: usize>(layers: [Layer; N]) -> Result<Self, SettingsError> {
        let mut builder = Config::builder();
        for layer in layers {
            builder = builder.add_source(layer);
        }
        let merged = builder.build().and_then(|config| config.collect()).map_err(SettingsError::Merge)?;
        let values = merged.into_iter().filter_map(|(key, value)| Some((Setting::find(&key)?.key, value)));
        Ok(Self { values: values.collect() })
    }

    /// The value as text; none where nobody gave one and there is no default.
    pub(super) fn given(&self, key: &str) -> Result<Option<Given>, SettingsError> {
        let Some((&key, value)) = self.values.get_key_value(key) else {
            return Ok(None);
        };
        let place = value.origin().unwrap_or_default().to_owned();
        let fault = |fault| SettingsError::value(key, None, &place, fault);
        let text = match &value.kind {
            ValueKind::Array(items) => {
                let list = Setting::find(key).is_some_and(|setting| setting.kind == Kind::List);
                let items: Option<Vec<_>> = items.iter().map(|item| scalar(&item.kind)).collect();
                let items = items.filter(|_| list).ok_or_else(|| fault(shape(key)))?;
                items.join(",")
            }
            kind => scalar(kind).ok_or_else(|| fault(shape(key)))?,
        };
        Ok(Some(Given { text, place }))
    }

    /// The value, parsed; none where nobody gave one and there is no default.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, ValueFault>,
    ) -> Result<Option<T>, SettingsError> {
        debug_assert!(Setting::find(key).is_some(), "{key} is not in the table");
        let Some(Given { text, place }) = self.given(key)? else {
            return Ok(None);
        };
        match parse(&text) {
            Ok(value) => Ok(Some(value)),
            Err(fault) => Err(SettingsError::value(key, Some(&text), &place, fault)),
        }
    }
}

fn scalar(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::Boolean(value) => Some(value.to_string()),
        ValueKind::I64(value) => Some(value.to_string()),
        ValueKind::U64(value) => Some(value.to_string()),
        ValueKind::Float(value) => Some(value.to_string()),
        _ => None,
    }
}

fn shape(key: &str) -> ValueFault {
    match Setting::find(key).map(|setting| setting.kind) {
        Some(Kind::List) => ValueFault::Shape("a list of texts, such as [\"a\", \"b\"]"),
        _ => ValueFault::Shape("one value, not a list or a table"),
    }
}

/// One layer, with canonical keys. Its values may be secret, so it shows none.
#[derive(Clone, Default)]
struct Layer(Map<String, Value>);

impl Layer {
    fn new(given: impl Iterator<Item = (String, Value)>) -> Result<Self, SettingsError> {
        let mut layer = Map::new();
        let mut written: BTreeMap<&'static str, String> = BTreeMap::new();
        for (key, value) in given {
            let place = value.origin().unwrap_or_default().to_owned();
            let (setting, value) = match secret_of(&key) {
                Some(setting) => (setting, read_secret(setting, &key, value)?),
                None => {
                    let place = match &value.kind {
                        ValueKind::Table(_) => format!("{place}, as a section, and the file has none"),
                        _ => place.clone(),
                    };
                    let unknown = || SettingsError::unknown(key.clone(), place, known_keys());
                    (Setting::find(&key).ok_or_else(unknown)?, value)
                }
            };
            if let Some(other) = written.insert(setting.key, key.clone()) {
                return Err(SettingsError::Both { first: other, second: key, place });
            }
            layer.insert(setting.key.to_owned(), value);
        }
        Ok(Self(layer))
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// The secret that `private-key-file` is the file of.
fn secret_of(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.kind == Kind::Secret && setting.file_key == key)
}

fn known_keys() -> impl Iterator<Item = String> {
    let files = SETTINGS.iter().filter(|setting| setting.kind == Kind::Secret);
    SETTINGS
        .iter()
        .map(|setting| setting.key.to_owned())
        .chain(files.map(|setting| setting.file_key.to_owned()))
}

fn read_secret(setting: &'static Setting, key: &str, value: Value) -> Result<Value, SettingsError> {
    let place = value.origin().unwrap_or_default().to_owned();
    let path =
        scalar(&value.kind).ok_or_else(|| SettingsError::value(setting.key, None, &place, shape(key)))?;
    let path = PathBuf::from(path);
    let text = std::fs::read_to_string(&path).map_err(|source| SettingsError::SecretFile {
        key: key.to_owned(),
        path: path.clone(),
        source,
    })?;
    let place = format!("in {}, {place}", path.display());
    // An editor ends the last line; the secret itself may end in a blank.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Value::new(Some(&place), text.strip_suffix('\r').unwrap_or(text)))
}

fn defaults() -> Result<Layer, SettingsError> {
    let mut text = String::new();
    for setting in SETTINGS {
        if let Preset::Is(literal) = setting.preset {
            text.push_str(&format!("{} = {literal}\n", setting.key));
        }
    }
    toml(BY_DEFAULT, &text).map_err(|()| SettingsError::Merge(ConfigError::Message("defaults".into())))
}

fn file(path: &Path) -> Result<Layer, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::File { path: path.to_owned(), source })?;
    let place = format!("in {}", path.display());
    let parsed = FileFormat::Toml.parse(Some(&place), &text);
    let values = parsed.map_err(|error| SettingsError::Toml {
        path: path.to_owned(),
        what: without_source_lines(&error.to_string()),
    })?;
    Layer::new(sorted(values))
}

fn toml(place: &str, text: &str) -> Result<Layer, ()> {
    let values = FileFormat::Toml.parse(Some(&place.to_owned()), text).map_err(|_| ())?;
    Layer::new(sorted(values)).map_err(|_| ())
}

/// In order of key, so that of two mistakes the same one is always told.
fn sorted(values: Map<String, Value>) -> impl Iterator<Item = (String, Value)> {
    values.into_iter().collect::<BTreeMap<_, _>>().into_iter()
}

/// The parser shows the line that it does not understand, which may be the one with a secret: only its words are kept.
fn without_source_lines(message: &str) -> String {
    let is_source = |line: &str| {
        let line = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        line.trim_start().starts_with('|')
    };
    let kept: Vec<_> = message.lines().filter(|line| !is_source(line)).map(str::trim).collect();
    kept.join(": ").trim_end_matches([':', ' ']).to_owned()
}

/// The `TLOG_*` variables, and the file that `TLOG_CONFIG` names. An empty variable is as none.
fn environment(env: Vec<(OsString, OsString)>) -> Result<(Layer, Option<PathBuf>), SettingsError> {
    let mut given = BTreeMap::new();
    let mut file = None;
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        if name == "TLOG_CONFIG" {
            file = Some(PathBuf::from(value));
            continue;
        }
        let place = format!("in the environment ({name})");
        let key = known_keys().find(|key| variable(key) == name).ok_or_else(|| {
            let names = known_keys().map(|key| variable(&key)).chain(["TLOG_CONFIG".to_owned()]);
            SettingsError::unknown(name.to_owned(), "in the environment".to_owned(), names)
        })?;
        let value = value.into_string().map_err(|_| SettingsError::NotText { name: name.to_owned() })?;
        given.insert(key, Value::new(Some(&place), value));
    }
    Ok((Layer::new(given.into_iter())?, file))
}

fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('-', "_").to_uppercase())
}
