//! `tlog bench`: short measurements as real processes. What they measure depends on the machine; that it is measured, and that the log
//! is looked at afterwards, does not.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::Place;

/// `tlog bench`, with programs to be found, and its directories in the place.
fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlog"));
    command.arg("bench").args(arguments).current_dir(place.path()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", place.path());
    command
}

fn bench(place: &Place, arguments: &[&str]) -> Output {
    command(place, arguments).output().unwrap()
}

/// It must succeed, leave nothing behind, and tell what it measured.
fn report(arguments: &[&str]) -> Value {
    let place = Place::new();
    let report = report_in(&place, arguments);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "something was left behind");
    report
}

fn report_in(place: &Place, arguments: &[&str]) -> Value {
    let output = bench(place, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// It must fail with 1.
fn failure(arguments: &[&str]) -> String {
    failure_in(&Place::new(), arguments)
}

fn failure_in(place: &Place, arguments: &[&str]) -> String {
    let output = bench(place, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Each of them was measured, in every run.
fn measured(report: &Value, keys: &[&str]) {
    for key in keys {
        let spread = &report["medians"][key];
        let [median, lowest, highest] =
            ["median", "lowest", "highest"].map(|name| spread[name].as_f64().unwrap_or(f64::NAN));
        assert!(lowest <= median && median <= highest && highest >= 0.0, "{key}: {spread}");
        for run in report["runs"].as_array().unwrap() {
            assert!(run[key].is_number(), "{key}: {run}");
        }
    }
}

#[test]
fn a_load_on_redis_servers_is_measured_and_verified() {
    let report = report(&["write", "--blocks", "400", "--runs", "2", "--plain"]);
    assert_eq!(report["benchmark"], "write");
    assert_eq!(report["verified_blocks"], 800);
    assert_eq!(report["flush_size"], 25);
    assert_eq!(report["redundancy"], "4+2, write quorum 5");
    assert!(report["machine"]["processors"].as_u64().unwrap() > 0);
    assert_eq!(report["runs"].as_array().unwrap().len(), 2);
    assert_eq!(report["medians"]["blocks"]["lowest"], 400.0);
    let keys = [
        "data_mb_per_s",
        "flush_ok_p50_us",
        "flush_ok_p90_us",
        "flush_ok_p99_us",
        "flush_ok_p999_us",
        "recv_ok_p50_us",
        "recv_ok_p999_us",
        "server_cpu_s_per_gb",
        "stores_cpu_s_per_gb",
        "client_cpu_s_per_gb",
        "server_peak_memory_mb",
        "stage_sealed_to_committed_mean_us",
        "plain_mb_per_s",
        "ratio_to_plain",
    ];
    measured(&report, &keys);
}

#[test]
fn settings_of_the_server_and_of_the_load_count() {
    let report = report(&[
        "write",
        "--stores",
        "directory",
        "--vdisks",
        "2",
        "--blocks",
        "301",
        "--block-size",
        "1KiB",
        "--data",
        "text",
        "--flush-size",
        "10",
        "-k",
        "2",
        "-m",
        "1",
        "--write-quorum",
        "3",
        "--outstanding",
        "20",
    ]);
    assert_eq!(report["verified_blocks"], 301);
    assert_eq!(report["redundancy"], "2+1, write quorum 3");
    assert_eq!(report["load"]["outstanding"], 20);
    measured(&report, &["data_mb_per_s", "stage_store_sync_mean_us"]);
    // Somebody has nothing to write.
    let one = self::report(&["write", "--stores", "directory", "--vdisks", "2", "--blocks", "1"]);
    assert_eq!(one["verified_blocks"], 1);
    // Text is compressed, and half as much again is stored.
    let stored = report["medians"]["stored_bytes_per_data_byte"]["median"].as_f64().unwrap();
    assert!(stored < 1.5, "{stored}");
}

#[test]
fn many_vdisks_and_a_long_log_are_measured_and_verified() {
    let report = report(&[
        "scale",
        "--stores",
        "directory",
        "--idle",
        "1,5",
        "--active",
        "2,4",
        "--seconds",
        "0.3",
        "--history",
        "60",
    ]);
    assert_eq!(report["benchmark"], "scale");
    assert!(report["verified_blocks"].as_u64().unwrap() >= 6);
    let keys = [
        "idle_0_server_mb",
        "idle_1_kib_per_vdisk",
        "idle_5_server_mb",
        "idle_5_connect_ms",
        "active_2_data_mb_per_s",
        "active_4_slowest_to_mean",
        "active_4_to_2",
        "history_open_ms",
        "history_read_open_ms",
    ];
    measured(&report, &keys);
    assert_eq!(report["medians"]["history_aggregations"]["median"], 60.0);
    let error = failure(&["scale", "--stores", "memory"]);
    assert!(error.contains("--history 0"), "{error}");
    let error = failure(&["scale", "--idle", "5,1", "--history", "0"]);
    assert!(error.contains("must rise"), "{error}");
}

#[test]
fn a_good_client_beside_hostile_ones_is_measured_and_verified() {
    let report = report(&[
        "hostile",
        "--stores",
        "directory",
        "--seconds",
        "0.3",
        "--hostile",
        "drip=300,vanish=20,claim=5,unread=2",
        "--handshake-timeout",
        "1s",
        "--message-timeout",
        "1s",
        "--write-timeout",
        "1s",
    ]);
    assert_eq!((&report["benchmark"], &report["hostile"]["drip"]), (&"hostile".into(), &300.into()));
    assert!(report["verified_blocks"].as_u64().unwrap() > 0);
    for kind in ["drip", "vanish", "claim", "unread", "together"] {
        measured(&report, &[&format!("{kind}_ratio"), &format!("{kind}_memory_growth_mib")]);
    }
    let figure = |key: &str| report["medians"][key]["median"].as_f64().unwrap();
    // They were let in, were closed by the server, and cost it little.
    assert!(figure("drip_opened") >= 300.0);
    assert!(figure("unread_longest_lived_s") >= 1.0 && figure("drip_longest_lived_s") >= 1.0);
    for kind in ["drip", "claim", "unread"] {
        assert_eq!(figure(&format!("{kind}_still_open")), 0.0, "{kind}");
        assert!(figure(&format!("together_{kind}_opened")) > 0.0, "{kind}");
    }
    assert!(figure("drip_memory_growth_mib") < 100.0);
    let status = |arguments: &[&str]| bench(&Place::new(), arguments).status.code();
    assert_eq!(status(&["hostile", "--hostile", "drip=0"]), Some(64));
    assert_eq!(status(&["hostile", "--hostile", "kind=7"]), Some(64));
}

#[test]
fn one_block_at_a_time_is_flushed_and_waited_for() {
    let report = report(&["write", "--stores", "directory", "--flush-each", "--blocks", "20"]);
    assert_eq!((&report["verified_blocks"], &report["load"]["flush_each"]), (&20.into(), &true.into()));
    assert_eq!(report["medians"]["blocks_per_aggregation"]["median"], 1.0);
    measured(&report, &["flush_ok_p50_us"]);
}

#[test]
fn an_open_loop_writes_so_many_per_second() {
    let report = report(&[
        "write",
        "--stores",
        "directory",
        "--rate",
        "2000",
        "--seconds",
        "0.2",
        "--flush-time",
        "100ms",
        "--data",
        "zero",
    ]);
    assert_eq!(report["verified_blocks"], 400);
    // No machine is so fast that it writes them before they are due.
    assert!(report["medians"]["seconds"]["median"].as_f64().unwrap() > 0.19);
    measured(&report, &["flush_ok_p99_us", "recv_ok_p50_us"]);
}

#[test]
fn a_disk_image_is_written_as_it_is() {
    let (place, image) = (Place::new(), Place::new());
    let file = image.path().join("disk.img");
    std::fs::write(&file, (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let data = format!("image:{}", file.display());
    let report = report_in(&place, &["write", "--stores", "directory", "--blocks", "200", "--data", &data]);
    assert_eq!((&report["verified_blocks"], &report["load"]["data"]), (&200.into(), &"image".into()));
    let said = failure(&["write", "--data", "image:is-not-there"]);
    assert!(said.contains("the image is-not-there: No such file"), "{said}");
}

#[test]
fn stores_in_memory_are_measured_and_said_not_to_be_verified() {
    let report = report(&["write", "--stores", "memory", "--blocks", "100"]);
    assert!(report["verified_blocks"].is_null());
    measured(&report, &["data_mb_per_s"]);
    let output = bench(&Place::new(), &["write", "--stores", "memory", "--blocks", "100"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("not verified: stores in memory are gone with their server"), "{said}");
    assert!(failure(&["restore", "--stores", "memory"]).contains("nothing could be read back"));
}

#[test]
fn a_store_that_answers_late_is_compared_with_one_that_does_not() {
    let report = report(&["write", "--blocks", "200", "--delay-store", "0=20ms"]);
    assert_eq!(report["verified_blocks"], 400);
    measured(
        &report,
        &[
            "delayed_to_healthy",
            "healthy_data_mb_per_s",
            "delayed_flush_ok_p99_us",
            "delayed_aggregations_behind",
        ],
    );
    let said = failure(&["write", "--delay-store", "6=20ms"]);
    assert!(said.contains("there is no store 6, they are 0 to 5"), "{said}");
    let said = failure(&["write", "--delay-store", "0=20ms", "--stores", "directory"]);
    assert!(said.contains("--stores redis"), "{said}");
}

#[test]
fn a_running_server_is_written_to_and_its_log_read_back() {
    let place = Place::new();
    let server = place.server(&["--flush-time", "100ms"]);
    let (address, admin) = (server.addr(), server.admin());
    let write = |blocks: &'static str| {
        let arguments =
            ["write", "--server", &address, "--vdisk", "vda", "--blocks", blocks, "--admin-listen", &admin];
        report_in(&place, &arguments)
    };
    // The second goes on where the first has ended.
    assert_eq!(write("110")["verified_blocks"], 110);
    let report = write("70");
    assert_eq!(report["verified_blocks"], 70);
    assert!(report["stores"].is_null());
    measured(&report, &["stage_sealed_to_committed_mean_us"]);
    assert!(report["medians"]["server_cpu_s_per_gb"].is_null());
    let report = report_in(&place, &["restore", "--vdisk", "vda"]);
    assert_eq!(report["medians"]["replayed_bytes"]["median"], f64::from(180 * 4096));
    server.stop();
}

#[test]
fn a_log_that_is_not_what_was_acknowledged_is_told() {
    let (place, other) = (Place::new(), Place::new());
    let (server, other_server) =
        (place.server(&["--flush-time", "100ms"]), other.server(&["--flush-time", "100ms"]));
    let write = |address: &str, seed: &str| {
        let arguments = ["write", "--server", address, "--vdisk", "vda", "--blocks", "50", "--seed", seed];
        bench(&place, &arguments)
    };
    // The settings lead to the log of `server`, and what is acknowledged is in that of `other_server`.
    let output = write(&other_server.addr(), "1");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the log is not what was acknowledged"), "{said}");
    assert!(write(&server.addr(), "1").status.success());
    let output = write(&other_server.addr(), "2");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("50 blocks were acknowledged as durable, and the log has 0 of them"), "{said}");
    server.stop();
    other_server.stop();
}

#[test]
fn a_log_is_read_back_and_compared() {
    let report =
        report(&["restore", "--stores", "directory", "--blocks", "300", "--disk", "512KiB", "--runs", "2"]);
    assert_eq!((&report["benchmark"], &report["verified_blocks"]), (&"restore".into(), &300.into()));
    assert_eq!(report["medians"]["replayed_bytes"]["median"], f64::from(300 * 4096));
    assert!(report["medians"]["restored_bytes"]["median"].as_f64().unwrap() <= f64::from(512 << 10));
    measured(&report, &["replay_gb_per_s", "replay_cpu_s_per_gb", "restore_to_nothing_gb_per_s"]);
    measured(&report, &["restore_to_file_gb_per_s", "peak_memory_mb", "state_ms"]);
}

#[test]
fn stores_are_measured_without_a_server() {
    let on_redis = report(&["store", "--values", "20", "--runs", "2"]);
    assert_eq!((&on_redis["benchmark"], &on_redis["stores"]), (&"store".into(), &"redis".into()));
    measured(&on_redis, &["plain_mb_per_s", "port_mb_per_s", "port_to_plain", "port_append_p99_us"]);
    measured(&on_redis, &["port_stores_cpu_s_per_gb"]);
    let durable = report(&["store", "--stores", "redis-aof", "--values", "5", "--flush-size", "3"]);
    assert!(durable["value_bytes"].as_u64().unwrap() < on_redis["value_bytes"].as_u64().unwrap());
    measured(&report(&["store", "--stores", "directory", "--values", "20"]), &["port_to_plain"]);
    let in_memory = report(&["store", "--stores", "memory", "--values", "20"]);
    measured(&in_memory, &["port_mb_per_s"]);
    assert!(in_memory["medians"]["port_to_plain"].is_null());
}

#[test]
fn the_codec_is_measured_stage_by_stage() {
    let report = report(&["codec", "--flush-size", "5", "-k", "2", "-m", "1"]);
    assert_eq!((&report["benchmark"], &report["flush_size"]), (&"codec".into(), &5.into()));
    for stage in ["parse", "hash_one", "hash_many", "aggregate", "encrypt", "hash_shards", "seal", "link"] {
        measured(&report, &[&format!("{stage}_us_per_block"), &format!("{stage}_gb_per_s")]);
    }
    measured(&report, &["compress_and_split_us_per_block", "read_open_us_per_block", "rebuild_us_per_block"]);
    let text = bench(&Place::new(), &["codec", "--flush-size", "5"]);
    assert!(String::from_utf8(text.stdout).unwrap().contains("seal: all of it, us/block"));
}

#[test]
fn what_cannot_be_measured_is_told_with_what_to_do() {
    let place = Place::new();
    let output = command(&place, &["write"]).env("PATH", place.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("redis-server is not installed") && said.contains("--stores directory"), "{said}");
    let said = failure(&["write", "--outstanding", "10", "--stores", "directory"]);
    assert!(said.contains("--outstanding 10 is less than --flush-size 25"), "{said}");
    let said = failure(&["write", "--data-dir", "somewhere"]);
    assert!(said.contains("--data-dir is of the measurement's own"), "{said}");
    let said = failure(&["write", "--scratch", "is/not/there", "--stores", "directory"]);
    assert!(said.contains("name another with --scratch"), "{said}");
    let said = failure(&["write", "--stores", "directory", "--plain"]);
    assert!(said.contains("--plain compares with Redis servers"), "{said}");
    let said = failure(&["write", "--server", "127.0.0.1:1", "--vdisk", "vda", "--data-dir", "nowhere"]);
    assert!(said.contains("none of the stores is there"), "{said}");
    for wrong in [["--rate", "0"], ["--rate", "1e300"], ["--seconds", "1e300"], ["--block-size", "1TiB"]] {
        let said = failure(&[&["write", "--stores", "directory"], &wrong[..]].concat());
        assert!(!said.contains("panicked"), "{said}");
    }
    let status = |arguments: &[&str]| bench(&place, arguments).status.code();
    assert_eq!(status(&["write", "--data", "noise"]), Some(64));
    assert_eq!(status(&["write", "--rate", "5", "--outstanding", "5"]), Some(64));
    assert_eq!(status(&["write", "--server", "127.0.0.1:1"]), Some(64));
    assert_eq!(status(&[]), Some(64));
}

#[test]
fn who_is_interrupted_leaves_nothing_behind() {
    let place = Place::new();
    let mut command = command(&place, &["write", "--seconds", "600"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Once the server writes its own log file, everything has been started.
    let is_started = || {
        let mut directories = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
        directories.any(|directory| directory.join("tlog-server.log").exists())
    };
    while !is_started() {
        std::thread::yield_now();
    }
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("interrupted; what was started has been stopped and removed"), "{said}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
