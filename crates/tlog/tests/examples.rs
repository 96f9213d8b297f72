//! The client's examples, run as anybody would run them, and a recipe of `docs/client.md`, against real servers.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "redis/site.rs"]
mod site;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use site::Site;
use support::{Place, Server, of_one_connection};
use tlog_client::{Client, ClientOptions, EndCause, Event, Start};
use tlog_proto::{BlockIndex, Sequence, VdiskId};

/// An example's binary. `cargo test --workspace` has built it, into the folder beside the one that this test is in;
/// where it did not, or only of what the source was before, it is built here.
fn example(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().unwrap().parent().unwrap();
    let binary = profile.join("examples").join(name);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let written = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    let source = workspace.join("examples").join(name).with_extension("rs");
    if written(&binary) < written(&source) {
        build(name, profile, &workspace);
    }
    Command::new(binary)
}

fn build(name: &str, profile: &Path, workspace: &Path) {
    let profile_name = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let cargo = std::env::var_os("CARGO").map_or(PathBuf::from(env!("CARGO")), PathBuf::from);
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "--package", "tlog-client", "--example", name]);
    command.args(["--profile", profile_name, "--target-dir"]).arg(profile.parent().unwrap());
    let output = command.current_dir(workspace).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the example said when it could not do its work.
fn fails(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn restored(place: &Place, vdisk: &str) -> Vec<u8> {
    place.tlog_ok(&["restore", vdisk, "-o", "restored", "--force"]);
    std::fs::read(place.path().join("restored")).unwrap()
}

/// Bytes that differ from block to block, and from mark to mark.
fn noise(bytes: usize, mark: u32) -> Vec<u8> {
    (0_u32..)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(mark).to_le_bytes())
        .take(bytes)
        .collect()
}

#[test]
fn record_blocks_writes_a_hundred_blocks() {
    let place = Place::new();
    let server = place.server(&[]);
    let run = || ok(example("record_blocks").args([&server.addr(), "myimg"]).output().unwrap());
    assert_eq!(run(), "durable: sequences 1 to before 102\n");
    let expected: Vec<u8> = (0..100).flat_map(|number| [number; 4096]).collect();
    assert!(restored(&place, "myimg") == expected);
    assert_eq!(run(), "durable: sequences 102 to before 203\n", "it goes on behind what is there");
    server.stop();
}

#[test]
fn copy_file_copies_a_file_and_what_comes_in() {
    let place = Place::new();
    let server = place.server(&[]);
    let (first, second) = (noise(10 * 4096 + 123, 1), noise(10 * 4096 + 123, 2));
    std::fs::write(place.path().join("image"), &first).unwrap();
    let run = |file: &str| {
        let mut command = example("copy_file");
        command.args([&server.addr(), "myimg", file]).current_dir(place.path());
        command
    };
    assert_eq!(ok(run("image").output().unwrap()), "11 blocks, 41083 bytes: durable\n");
    assert!(restored(&place, "myimg") == first);

    let mut copying = run("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = copying.stdin.take().unwrap();
    // In pieces that are no blocks.
    second.chunks(1000).for_each(|piece| input.write_all(piece).unwrap());
    drop(input);
    assert_eq!(ok(copying.wait_with_output().unwrap()), "11 blocks, 41083 bytes: durable\n");
    assert!(restored(&place, "myimg") == second);
    let moment = ["restore", "myimg", "-o", "before", "--sequence", "11"];
    place.tlog_ok(&moment);
    assert!(
        std::fs::read(place.path().join("before")).unwrap() == first,
        "the first copy is still in history"
    );

    assert_eq!(ok(run("/dev/null").output().unwrap()), "0 blocks, 0 bytes: durable\n");
    assert!(restored(&place, "myimg") == second);
    server.stop();
}

#[test]
fn copy_file_says_what_is_wrong() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let place = Place::new();
    std::fs::write(place.path().join("image"), b"content").unwrap();
    let says = |arguments: [&str; 3], words: &str| {
        let mut command = example("copy_file");
        command.args(arguments).current_dir(place.path());
        let said = fails(command);
        assert!(said.starts_with("copy_file: ") && said.contains(words), "{said:?}");
    };
    says([&nobody, "myimg", "missing"], "missing cannot be read: No such file");
    says([&nobody, "myimg", "image"], "check that a tlog server listens there");
    says([&nobody, "my/img", "image"], "vdisk");
    let usage = example("copy_file").output().unwrap();
    assert_eq!(usage.status.code(), Some(64), "{usage:?}");
}

#[test]
fn failover_ends_well_when_its_server_is_killed() {
    const BLOCKS: u64 = 1000;
    let site = Site::new();
    let (first, second) = (site.serve(), site.serve());
    let servers = format!("{},{}", first.addr(), second.addr());
    let mut running = example("failover")
        .args([&servers, "vda", &BLOCKS.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), format!("connected to {}", first.addr()));
    let handed_over = lines.next().unwrap();
    assert!(handed_over.starts_with("100 blocks handed over, "), "{handed_over}");
    let lost = first.addr();
    first.kill();

    let rest: Vec<String> = lines.collect();
    assert!(running.wait().unwrap().success(), "{rest:?}");
    let changes: Vec<&String> = rest.iter().filter(|line| line.contains("reconnect")).collect();
    let [reconnecting, reconnected] = changes[..] else { panic!("{rest:?}") };
    assert!(reconnecting.starts_with(&format!("reconnecting: {lost} is lost, ")), "{reconnecting}");
    assert!(reconnected.starts_with(&format!("reconnected: to {}, ", second.addr())), "{reconnected}");
    let end = rest.last().unwrap();
    assert!(end.starts_with("every handle resolved: 1000 blocks durable, "), "{end}");

    let expected: Vec<u8> = (0..BLOCKS).flat_map(|number| number.to_le_bytes().repeat(512)).collect();
    assert!(site.restored("vda") == expected);
    second.stop();
}

/// "What to do with `unflushed()`" of `docs/client.md`, with another server in the place of the one that died.
async fn deliver(ended: &Client, server: &Server) -> Result<Client, &'static str> {
    let left = ended.unflushed().await;
    let start = Start::At(left[0].sequence);
    let options = ClientOptions { start, session: Some(ended.session()), ..ClientOptions::default() };
    let client = Client::connect(server.addr(), ended.vdisk().clone(), options).await.unwrap();
    if client.last_flushed_at_connect().is_none() && ended.stats().durable_blocks > 0 {
        client.close().await;
        return Err("somebody else has written the vdisk, or the log is another one");
    }
    for block in left {
        client.send(block).await.unwrap();
    }
    client.flush().await.unwrap();
    Ok(client)
}

async fn set(client: &Client, number: u8) -> tlog_client::Durable {
    client.set(BlockIndex::new(number.into()).unwrap(), vec![number; 512]).await.unwrap()
}

#[tokio::test]
async fn what_a_client_could_not_deliver_another_one_does_and_not_where_somebody_else_has_written() {
    let place = Place::new();
    let server = place.server(&[]);
    let vdisk = VdiskId::new("myimg").unwrap();
    let client = Client::connect(server.addr(), vdisk.clone(), of_one_connection()).await.unwrap();
    let mut events = client.events();
    for number in 1..=3 {
        set(&client, number).await;
    }
    client.flush().await.unwrap();
    let (_, last) = (set(&client, 4).await, set(&client, 5).await);
    while !matches!(events.next().await.unwrap(), Event::Received(Sequence(5))) {}
    server.kill();
    let failed = last.await.unwrap_err();
    assert!(matches!(failed.ending.cause(), EndCause::GaveUp { .. }), "{failed}");
    assert_eq!(failed.ending.unacknowledged().to_string(), "4-5");

    let server = place.server(&[]);
    let second = deliver(&client, &server).await.unwrap();
    assert_eq!(second.last_flushed_at_connect(), Some(Sequence(3)));
    // What the first one has is durable now, and no gap and no new generation come of saying it once more.
    let third = deliver(&client, &server).await.unwrap();
    assert_eq!((third.last_flushed_at_connect(), third.stats().durable_blocks), (Some(Sequence(5)), 2));
    let expected: Vec<u8> = (0..=5).flat_map(|number| [number; 512]).collect();
    assert!(restored(&place, "myimg") == expected);
    assert_eq!(place.tlog_ok(&["history", "myimg", "--json"]).matches("\"generation\":1,").count(), 2);

    let another = Client::connect(server.addr(), vdisk, of_one_connection()).await.unwrap();
    set(&another, 6).await;
    another.flush().await.unwrap();
    deliver(&client, &server).await.unwrap_err();
    let expected: Vec<u8> = (0..=6).flat_map(|number| [number; 512]).collect();
    assert!(restored(&place, "myimg") == expected);
    server.stop();
}
