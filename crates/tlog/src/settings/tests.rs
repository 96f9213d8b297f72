//! Every layer of the settings, good and bad.

use std::ffi::OsString;
use std::path::PathBuf;

use proptest::prelude::*;

use super::layers::Sources;
use super::*;

/// Settings from a file's text, variables and flags.
fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tlog.toml");
    std::fs::write(&path, file).unwrap();
    let args = flags.iter().fold(SettingsArgs::default(), |args, (key, value)| args.with(key, *value));
    let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
    Settings::from_merged(&Sources { args: &args, env, default_file: Some(path) }.merge()?)
}

/// What a file alone is refused with.
fn refused(file: &str) -> String {
    load(file, &[], &[]).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let settings = load("", &[], &[]).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:11211");
    assert_eq!(settings.admin_listen, None);
    assert_eq!(settings.storage, Storage::Embedded { data_dir: "tlog-data".into() });
    assert_eq!(settings.redundancy, RedundancySettings { data_shards: 4, parity_shards: 2, write_quorum: 5 });
    assert_eq!((settings.flush_size, settings.flush_time), (25, Duration::from_secs(25)));
    assert_eq!(settings.key_file, None);
    assert_eq!(settings.server_id, "default");
    assert_eq!(settings.limits.idle_timeout, None);
    assert_eq!(settings.limits.max_unflushed_bytes, 512 << 20);
    let logging = LogSettings { filter: "info".into(), filter_is_set: false, format: LogFormat::Text };
    assert_eq!(settings.logging, logging);
    assert!(load("log-level = 'info'", &[], &[]).unwrap().logging.filter_is_set);
    assert_eq!(settings.warnings(), Vec::<String>::new());
    let stores: Vec<String> = settings.stores().iter().map(ToString::to_string).collect();
    assert_eq!(stores.len(), 6);
    assert_eq!(stores[5], "file:tlog-data/store-5");
}

#[test]
fn a_later_layer_wins_over_an_earlier_one_key_by_key() {
    let settings = load(
        "flush-size = 1\nflush-time = '1s'\nserver-id = 'file'\ndata-dir = 'file'",
        &[("TLOG_FLUSH_TIME", "2s"), ("TLOG_SERVER_ID", "env"), ("HOME", "/x"), ("TLOG_DATA_DIR", "")],
        &[("server-id", "flag")],
    )
    .unwrap();
    assert_eq!(settings.flush_size, 1);
    assert_eq!(settings.flush_time, Duration::from_secs(2));
    assert_eq!(settings.server_id, "flag");
    assert_eq!(
        settings.storage,
        Storage::Embedded { data_dir: "file".into() },
        "an empty variable is as none"
    );
}

#[test]
fn a_named_file_is_read_in_place_of_the_default_one_and_has_to_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let (default, named) = (directory.path().join("tlog.toml"), directory.path().join("mine.toml"));
    std::fs::write(&default, "server-id = 'default file'\nflush-size = 3").unwrap();
    std::fs::write(&named, "server-id = 'named file'").unwrap();
    let load = |config: Option<PathBuf>, env: Option<PathBuf>| {
        let args = SettingsArgs { config, ..Default::default() };
        let env = env.map(|path| (OsString::from("TLOG_CONFIG"), path.into())).into_iter().collect();
        Settings::from_merged(&Sources { args: &args, env, default_file: Some(default.clone()) }.merge()?)
    };
    assert_eq!(load(None, None).unwrap().server_id, "default file");
    let settings = load(Some(named.clone()), Some("nowhere.toml".into())).unwrap();
    assert_eq!((&settings.server_id[..], settings.flush_size), ("named file", 25));
    assert_eq!(load(None, Some(named)).unwrap().server_id, "named file");
    let missing = load(Some("nowhere.toml".into()), None).unwrap_err().to_string();
    assert!(missing.contains("nowhere.toml cannot be read"), "{missing}");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let check = |error: Result<Settings, SettingsError>, key: &str, nearest: Option<&str>| {
        let error = error.unwrap_err();
        let SettingsError::Unknown { key: named, nearest: found, .. } = &error else { panic!("{error}") };
        assert_eq!((named.as_str(), found.as_deref()), (key, nearest), "{error}");
    };
    check(load("flush-sise = 3", &[], &[]), "flush-sise", Some("flush-size"));
    check(load("flush_size = 3", &[], &[]), "flush_size", Some("flush-size"));
    check(load("FlushSize = 3", &[], &[]), "FlushSize", Some("flush-size"));
    check(load("[flush]\nsize = 3", &[], &[]), "flush", Some("flush-time"));
    check(load("parity = 3", &[], &[]), "parity", Some("parity-shards"));
    check(load("xyzzy = 3", &[], &[]), "xyzzy", None);
    check(load("key-file-file = 3", &[], &[]), "key-file-file", Some("key-file"));
    check(load("", &[("TLOG_FLUSH_SIZ", "3")], &[]), "TLOG_FLUSH_SIZ", Some("TLOG_FLUSH_SIZE"));
    check(load("", &[("TLOG_KEYFILE", "3")], &[]), "TLOG_KEYFILE", Some("TLOG_KEY_FILE"));
    let told = load("", &[("TLOG_FLUSH_SIZ", "3")], &[]).unwrap_err().to_string();
    assert_eq!(
        told,
        "there is no setting TLOG_FLUSH_SIZ (in the environment); did you mean TLOG_FLUSH_SIZE?"
    );
}

#[test]
fn a_bad_value_is_refused_with_its_place_and_what_would_be_right() {
    let error = load("", &[("TLOG_FLUSH_TIME", "25")], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "flush-time = \"25\" (in the environment (TLOG_FLUSH_TIME)): it must be a duration with a unit, such as 25s, \
         500ms, 5m or 1h30m"
    );
    let error = load("", &[], &[("listen", ":11211")]).unwrap_err().to_string();
    assert!(error.contains("(on the command line (--listen))") && error.contains("0.0.0.0:11211"), "{error}");
    for (file, says) in [
        ("flush-size = -1", "whole number from 0"),
        ("flush-size = 2.5", "whole number"),
        ("flush-size = 'many'", "whole number"),
        ("flush-size = [1]", "one value"),
        ("flush-time = 25", "with a unit"),
        ("flush-time = '0s'", "more than nothing"),
        ("idle-timeout = 'never'", "with a unit"),
        ("max-block-size = 0", "a size above zero"),
        ("max-block-size = '1GiB'", "at most 256MiB"),
        ("storage = [1, [2]]", "a list of texts"),
        ("storage = ['/srv/tlog']", "file:DIRECTORY or memory:"),
        ("format = 3", "1 or 2"),
        ("require-durable-stores = 'maybe'", "true or false"),
        ("log-format = 'xml'", "text or json"),
        ("tls-permissions = ['a=*', 'vda']", "\"vda\" is no rule; write NAME=VDISK"),
        ("tls-permissions = 'a=v?'", "fits no vdisk"),
        ("tls-permissions = []", "it is empty"),
        ("server-name = 'a b'", "the name or the address of a host"),
        ("tls-certificate-file = ''", "it is empty"),
        ("log-level = 'loud'", "error, warn, info"),
        ("log-level = 'a=b=c'", "error, warn, info"),
        ("server-id = ''", "it is empty"),
        ("data-dir = ''", "it is empty"),
        ("in-flight = 0", "whole number from 1"),
        ("max-connections = 0", "whole number from 1"),
        ("flush-size", "TOML parse error at line 1"),
    ] {
        let error = refused(file);
        assert!(error.contains(says), "{file}: {error}");
        assert!(error.contains("tlog.toml"), "{file}: {error}");
    }
}

#[test]
fn nonsense_is_refused_with_a_sentence_that_says_what_to_change() {
    for (file, says) in [
        ("data-shards = 0", "data-shards is 0; it must be at least 1"),
        ("data-shards = 200\nparity-shards = 56", "are 256 stores; at most 255"),
        ("data-shards = 4294967296\nparity-shards = 4294967296", "at most 255"),
        ("write-quorum = 4", "it must be from 5 to 6"),
        ("write-quorum = 7", "it must be from 5 to 6"),
        ("parity-shards = 0\nwrite-quorum = 5", "it must be 4, all of them"),
        ("parity-shards = 1\nwrite-quorum = 4", "it must be 5"),
        ("flush-size = 0", "flush-size is 0"),
        ("storage = ['memory:']", "names 1 stores, and data-shards 4 + parity-shards 2 need 6; add 5"),
        (
            "storage = 'file:a,file:b'\ndata-shards = 2",
            "names 2 stores, and data-shards 2 + parity-shards 2 need 4",
        ),
        ("storage = 'file:a,file:b,file:./a/'\ndata-shards = 1", "twice"),
        ("storage = 'file:a,file:b,file:a'\ndata-shards = 1", "names file:a twice"),
        (
            "storage = 'file:a,memory:,memory:'\ndata-shards = 1\nrequire-durable-stores = true",
            "forgets everything",
        ),
        ("max-unflushed-bytes = '32MiB'", "max-unflushed-bytes-per-vdisk is above max-unflushed-bytes"),
        ("max-window-bytes = '20MiB'", "max-window-bytes-per-vdisk is above max-window-bytes"),
        (
            "max-unflushed-bytes-per-vdisk = '1MiB'",
            "max-unflushed-bytes-per-vdisk has no room for the largest block",
        ),
        ("max-window-bytes-per-vdisk = '16MiB'", "raise it to at least 16842752"),
        (
            "listen = 'localhost:7'\nadmin-listen = 'localhost:7'",
            "are both localhost:7; give admin-listen a port",
        ),
        ("[server]\nlisten = '127.0.0.1:7'", "as a section, and the file has none"),
        ("storage = '/srv/a,/srv/b'", "file:DIRECTORY or memory:"),
        ("format = 1", "set storage to some, or use format 2"),
        ("format = 3", "1 or 2"),
        ("format = 1\nstorage = '127.0.0.1:6379'", "needs private-key and nonce"),
        (
            "format = 1\nstorage = ['127.0.0.1:6379', 'file:b']\ndata-shards = 1\nparity-shards = 1",
            "and storage has file:b",
        ),
        ("private-key = 'hush'", "set the other one too"),
        ("nonce = 'hush'", "set the other one too"),
        ("private-key = 'hush'\nnonce = '000000000000000000000000'", "has 4 bytes, it must have 32"),
        (
            "private-key = '12345678901234567890123456789012'\nnonce = 'hush'",
            "must be hex digits, character 1 is none",
        ),
        ("slave-sync = true", "slave-sync does nothing without config-source"),
        ("config-source = 'http://a:1'\netcd-user = 'a'", "etcd-user and etcd-password go together"),
        ("config-source = 'http://a:1'\netcd-password = 'hush'", "etcd-password and etcd-user go together"),
        (
            "config-source = 'vdisks.yaml'\netcd-ca-file = 'a'",
            "etcd-ca-file does nothing without config-source",
        ),
        ("etcd-certificate-file = 'a'\netcd-key-file = 'a'", "etcd-certificate-file does nothing without"),
        ("storage = '127.0.0.1:16379'\nauto-fill = false", "names 1 stores"),
        ("storage = '127.0.0.1:65534'", "auto-fill would go past port 65535"),
        ("storage = ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:1']", "names redis://127.0.0.1:1/0 twice"),
        ("storage = ['localhost:1@2', 'redis://u:hush@127.0.0.1:1/2']", "names redis://localhost:1/2 twice"),
        ("storage = ['rediss://u:hush@h']", "needs a host and a port"),
        ("store-certificate-file = 'a'", "store-certificate-file and store-key-file go together"),
        ("tls-certificate-file = 'a'", "tls-certificate-file and tls-key-file go together; set both or none"),
        ("tls-key-file = 'a'", "tls-key-file and tls-certificate-file go together"),
        ("tls-client-ca-file = 'a'", "tls-client-ca-file does nothing without tls-certificate-file"),
        (
            "tls-certificate-file = 'a'\ntls-key-file = 'a'\ntls-permissions = 'a=b'",
            "tls-permissions does nothing without tls-client-ca-file",
        ),
        ("client-key-file = 'a'", "client-key-file and client-certificate-file go together"),
        (
            "client-certificate-file = 'a'\nclient-key-file = 'a'",
            "client-certificate-file does nothing without server-ca-file",
        ),
        ("server-name = 'a'", "server-name does nothing without server-ca-file"),
        ("listen = '0.0.0.0:7'", "listening on 0.0.0.0:7 without TLS, whoever reaches it"),
        ("listen = '[::]:7'", "set tls-certificate-file and tls-key-file"),
        (
            "listen = 'tlog-1.example.org:7'",
            "or set allow-unencrypted-network if others cannot reach that network",
        ),
    ] {
        let error = refused(file);
        assert!(error.contains(says), "{file}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn missing_redis_servers_are_on_the_next_ports_of_the_last_ones_host() {
    let stores = |file: &str| {
        let settings = load(file, &[], &[]).unwrap();
        settings.stores().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let filled = stores("storage = 'redis://a:pass@10.0.0.1:6379/2'\nparity-shards = 1\ndata-shards = 2");
    assert_eq!(filled, [6379, 6380, 6381].map(|port| format!("redis://10.0.0.1:{port}/2")));
    let two = stores("storage = ['a:1', 'b:7']\nparity-shards = 1\ndata-shards = 3");
    assert_eq!(two, ["redis://a:1/0", "redis://b:7/0", "redis://b:8/0", "redis://b:9/0"]);
    assert_eq!(stores("storage = '127.0.0.1:6379'").len(), 6);
    let format1 = "format = 1\nstorage = '127.0.0.1:6379'\nprivate-key = '12345678901234567890123456789012'\n\
        nonce = '37b8e8a308c354048d245f6d'";
    let settings = load(format1, &[], &[]).unwrap();
    assert!(settings.warnings().join("\n").contains("one nonce for everything"));
    assert!(!format!("{settings:?}").contains("12345678901234567890123456789012"));
}

#[test]
fn what_is_allowed_and_doubtful_is_warned_of() {
    let warned = |file: &str| load(file, &[], &[]).unwrap().warnings().join("\n");
    let open = "listen = '0.0.0.0:11211'\n";
    assert!(
        warned(&format!("{open}allow-unencrypted-network = true")).contains("plain TCP without passwords")
    );
    let tls = format!("{open}tls-certificate-file = 'c'\ntls-key-file = 'k'\n");
    assert!(warned(&tls).contains("clients need no certificate"));
    assert_eq!(warned(&format!("{tls}tls-client-ca-file = 'a'")), "");
    assert!(warned("admin-listen = '0.0.0.0:11212'").contains("plain HTTP without passwords"));
    assert!(warned("admin-listen = '127.0.0.1:11212'").is_empty());
    assert!(warned("listen = '127.0.0.1:0'\nadmin-listen = '127.0.0.1:0'").is_empty());
    assert!(warned("parity-shards = 0").contains("the loss of any one store"));
    let extra = "data-shards = 1\nparity-shards = 1\nstorage = 'file:a,memory:,file:b'";
    assert!(
        warned(extra).contains("forgets everything") && warned(extra).contains("only the first 2 are used")
    );
    assert_eq!(load(extra, &[], &[]).unwrap().stores().len(), 2);
}

#[test]
fn tls_is_for_both_sides() {
    let settings = load(
        "tls-certificate-file = 'c'\ntls-key-file = 'k'\ntls-client-ca-file = 'ca'\n\
         tls-permissions = ['one.example.org=vda', 'two=*']\nserver-ca-file = 'sca'\nclient-certificate-file = 'cc'\n\
         client-key-file = 'ck'\nserver-name = 'tlog.example.org'",
        &[],
        &[],
    )
    .unwrap();
    let files = TlsFiles { certificate: "c".into(), key: "k".into(), client_ca: Some("ca".into()) };
    let rules = ["one.example.org=vda", "two=*"].map(|rule| rule.parse().unwrap());
    assert_eq!(settings.tls, Some(ServerTlsSettings { files, permissions: Permissions::new(rules.into()) }));
    let client = ClientTlsSettings {
        ca_file: "sca".into(),
        client: Some(("cc".into(), "ck".into())),
        server_name: Some("tlog.example.org".to_owned()),
    };
    assert_eq!(settings.client_tls, Some(client));
    let nothing = load("", &[], &[]).unwrap();
    assert_eq!((nothing.tls, nothing.client_tls), (None, None));
    let by_flag =
        load("server-ca-file = 'a'", &[("TLOG_SERVER_NAME", "10.0.0.7")], &[]).unwrap().client_tls.unwrap();
    assert_eq!((by_flag.client, by_flag.server_name.as_deref()), (None, Some("10.0.0.7")));
}

#[test]
fn a_secret_is_never_shown_wherever_it_stands() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "hush-hush\n").unwrap();
    let file = file.to_str().unwrap();
    let merged = |text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]| {
        let path = directory.path().join("tlog.toml");
        std::fs::write(&path, text).unwrap();
        let args = flags.iter().fold(SettingsArgs::default(), |args, (key, value)| args.with(key, *value));
        let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        Sources { args: &args, env, default_file: Some(path) }.merge()
    };
    let check = |text: &str, env: &[(&str, &str)], flags: &[(&str, &str)], secret: &str| {
        let merged = merged(text, env, flags).unwrap();
        assert_eq!(merged.given("private-key").unwrap().unwrap().text, secret);
        let shown = document::effective(&merged).unwrap();
        assert!(shown.contains("private-key = \"<secret>\"") && !shown.contains("hush"), "{shown}");
        let error = check::settings(&merged).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    };
    check("private-key = 'hush'", &[], &[], "hush");
    check(&format!("private-key-file = '{file}'"), &[], &[], "hush-hush");
    check("private-key = 'hush'", &[("TLOG_PRIVATE_KEY_FILE", file)], &[], "hush-hush");
    check("", &[("TLOG_PRIVATE_KEY_FILE", file)], &[("private-key", "hush")], "hush");

    let refused = |text: &str, env: &[(&str, &str)], says: &str| {
        let Err(error) = merged(text, env, &[]) else { panic!("{text} is taken") };
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(says) && !shown.contains("hush"), "{shown}");
    };
    refused(&format!("private-key = 'hush'\nprivate-key-file = '{file}'"), &[], "leave one of them out");
    refused(
        "",
        &[("TLOG_NONCE_FILE", "/nowhere/nonce")],
        "/nowhere/nonce that nonce-file names cannot be read",
    );
    refused("private-key = hush", &[], "TOML parse error at line 1");
    refused("private-key = 'hush", &[], "TOML parse error at line 1");
    refused("private-key = 'a'\nprivate-key = 'hush'", &[], "TOML parse error at line 2");
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let env = vec![(OsString::from("TLOG_SERVER_ID"), OsString::from_vec(vec![0xff, 0xfe]))];
    let args = SettingsArgs::default();
    let Err(error) = Sources { args: &args, env, default_file: None }.merge() else { panic!("taken") };
    assert_eq!(error.to_string(), "the environment variable TLOG_SERVER_ID is not UTF-8");
}

#[test]
fn every_setting_can_be_set_in_the_file_the_environment_and_by_flag() {
    for setting in SETTINGS {
        let literal = setting.literal();
        let file = format!("{} = {literal}\n", setting.key);
        let text = literal.replace(['[', ']', '"'], "").replace(", ", ",");
        let outcomes = [
            load(&file, &[], &[]),
            load("", &[(&setting.env(), &text)], &[]),
            load("", &[], &[(setting.key, &text)]),
        ];
        let told = outcomes.map(|outcome| match outcome {
            Ok(settings) => format!("{settings:?}"),
            // Of no use alone.
            Err(error @ SettingsError::Contradiction(_)) => error.to_string(),
            Err(error) => panic!("{}: {error}", setting.key),
        });
        assert_eq!(told[0], told[1], "{}", setting.key);
        assert_eq!(told[0], told[2], "{}", setting.key);
    }
}

#[test]
fn the_default_file_says_nothing_and_with_the_marks_removed_says_the_defaults() {
    let file = default_file();
    assert_eq!(load(&file, &[], &[]).unwrap(), load("", &[], &[]).unwrap());
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let lines: Vec<&str> = file.lines().filter(is_setting).collect();
    assert_eq!(lines.len(), SETTINGS.len());
    let defaults = lines.iter().map(|line| line.trim_start_matches('#'));
    let defaults = defaults.filter(|line| {
        let key = line.split(' ').next().unwrap();
        matches!(Setting::find(key).unwrap().preset, Preset::Is(_))
    });
    let uncommented = defaults.collect::<Vec<_>>().join("\n");
    let mut defaults = load("", &[], &[]).unwrap();
    defaults.logging.filter_is_set = true;
    assert_eq!(load(&uncommented, &[], &[]).unwrap(), defaults);
    assert!(file.lines().all(|line| line.len() <= 100 || is_setting(&line)), "{file}");
}

/// `UPDATE_DOCS=1 cargo test -p tlog` writes it anew.
#[test]
fn the_documentation_has_the_table_of_settings() {
    check_documented("settings.md", "settings", &markdown());
}

proptest! {
    /// Against the rules, written out plainly.
    #[test]
    fn redundancy_is_taken_exactly_where_the_rules_allow_it(k in 0u64..260, m in 0u64..260, w in prop::option::of(0u64..300)) {
        let mut file = format!("data-shards = {k}\nparity-shards = {m}\n");
        if let Some(w) = w {
            file.push_str(&format!("write-quorum = {w}\n"));
        }
        let w = w.unwrap_or(k + m / 2 + m % 2);
        let legal = k > 0 && k + m <= 255 && w <= k + m && if m == 0 { w == k } else { w > k };
        match load(&file, &[], &[]) {
            Ok(settings) => {
                prop_assert!(legal);
                let RedundancySettings { data_shards, parity_shards, write_quorum } = settings.redundancy;
                prop_assert_eq!([data_shards, parity_shards, write_quorum].map(u64::from), [k, m, w]);
            }
            Err(_) => prop_assert!(!legal),
        }
    }

    #[test]
    fn no_file_makes_the_reader_panic(text in "([a-z-]{1,12} = ['\"\\[0-9a-z\\]]{0,12}\n){0,4}") {
        let _ = load(&text, &[], &[]);
    }
}
