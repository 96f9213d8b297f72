//! A link and a real server: being let in, hanging, dying, coming back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult};
use tlog_config::{RedisServer, Secret};
use tlog_redis::{Link, LinkLimits, LinkState, kind_of};
use tlog_testbed::{RedisOptions, RedisProcess};
use tokio::task::JoinSet;

/// Limits that no healthy server comes near, however busy the machine is, and short pauses.
fn limits() -> LinkLimits {
    LinkLimits {
        connect: Duration::from_secs(20),
        response: Duration::from_secs(20),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(50),
        ..LinkLimits::default()
    }
}

fn server_of(process: &RedisProcess) -> RedisServer {
    RedisServer::new(process.host(), process.port())
}

fn link_to(process: &RedisProcess) -> Link {
    Link::new(server_of(process), limits())
}

fn echo(text: &str) -> Cmd {
    redis::cmd("ECHO").arg(text).take()
}

/// The same, for servers that hang.
fn short() -> LinkLimits {
    LinkLimits { connect: Duration::from_millis(500), response: Duration::from_millis(500), ..limits() }
}

async fn ping(link: &Link) -> RedisResult<String> {
    link.run(&redis::cmd("PING")).await
}

/// Has a future begun, and leaves it where it waits.
async fn begin<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut future = future;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_link_does_not_dial_before_it_is_used_and_names_itself_to_the_server() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = link_to(&process);
    assert_eq!(link.state(), LinkState::Idle);
    assert_eq!(*link.address(), format!("redis://127.0.0.1:{}/0", process.port()));
    assert!(!process.cli(&["CLIENT", "LIST"]).contains("name=tlog"));
    assert_eq!(ping(&link).await.unwrap(), "PONG");
    assert_eq!(link.state(), LinkState::Up);
    assert!(process.cli(&["CLIENT", "LIST"]).contains("name=tlog"));
}

#[tokio::test]
async fn the_connection_is_closed_with_the_last_clone() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = link_to(&process);
    let clone = link.clone();
    ping(&link).await.unwrap();
    drop(link);
    ping(&clone).await.unwrap();
    drop(clone);
    let begun = Instant::now();
    while process.cli(&["CLIENT", "LIST"]).contains("name=tlog") {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_gives_no_or_a_wrong_password_is_told_so_and_let_in_with_the_right_one() {
    let process = RedisProcess::start(RedisOptions {
        password: Some("open sesame".into()),
        users: vec!["anna on >secret ~* +@all".into(), "bert on >secret ~* +@all -config -info".into()],
        ..RedisOptions::default()
    });
    let link = |user: Option<&str>, password: Option<&str>| {
        let (user, password) = (user.map(str::to_owned), password.map(Secret::new));
        Link::new(RedisServer { user, password, ..server_of(&process) }, limits())
    };
    let refused = async |user, password, said: &str| {
        let link = link(user, password);
        let error = ping(&link).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        // Nothing that is shown has the password in it.
        for shown in [error, format!("{link:?}"), kind_of(ping(&link).await.unwrap_err()).to_string()] {
            assert!(password.is_none_or(|password| !shown.contains(password)), "{shown}");
        }
    };
    refused(None, None, "asks for a password").await;
    refused(None, Some("wrong-one"), "refuses the default user").await;
    refused(Some("anna"), Some("wrong-one"), "refuses user anna").await;
    refused(Some("nobody"), Some("wrong-one"), "refuses user nobody").await;

    assert_eq!(ping(&link(None, Some("open sesame"))).await.unwrap(), "PONG");
    let anna = link(Some("anna"), Some("secret"));
    assert_eq!(anna.run::<String>(redis::cmd("ACL").arg("WHOAMI")).await.unwrap(), "anna");
    // Not to be allowed to ask for settings keeps nobody out.
    let bert = link(Some("bert"), Some("secret"));
    assert_eq!(ping(&bert).await.unwrap(), "PONG");
    assert_eq!(bert.last_durability().unwrap().name(), "unknown");
}

#[tokio::test]
async fn databases_of_one_server_are_kept_apart() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = |database| Link::new(RedisServer { database, ..server_of(&process) }, limits());
    let (zero, three) = (link(0), link(3));
    zero.run::<()>(redis::cmd("SET").arg("key").arg("zero")).await.unwrap();
    three.run::<()>(redis::cmd("SET").arg("key").arg("three")).await.unwrap();
    assert_eq!(zero.run::<String>(redis::cmd("GET").arg("key")).await.unwrap(), "zero");
    assert_eq!(three.run::<String>(redis::cmd("GET").arg("key")).await.unwrap(), "three");
    let error = ping(&link(1000)).await.unwrap_err().to_string();
    assert!(error.contains("DB index is out of range") || error.contains("database"), "{error}");
}

#[tokio::test]
async fn an_error_that_the_server_answers_leaves_the_connection_as_it_is() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = link_to(&process);
    link.run::<()>(redis::cmd("SET").arg("key").arg("text")).await.unwrap();
    let id: u64 = link.run(redis::cmd("CLIENT").arg("ID")).await.unwrap();
    link.run::<()>(redis::cmd("LPUSH").arg("key").arg("x")).await.unwrap_err();
    link.run::<()>(&redis::cmd("NOSUCHCOMMAND")).await.unwrap_err();
    link.run::<u64>(&redis::cmd("PING")).await.unwrap_err();
    assert_eq!(link.run::<u64>(redis::cmd("CLIENT").arg("ID")).await.unwrap(), id);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_after_the_limit_and_used_again_when_it_goes_on() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = Link::new(server_of(&process), short());
    ping(&link).await.unwrap();
    process.stop();
    let begun = Instant::now();
    // Both fail at once when the limit of the first has passed.
    let (first, second) = tokio::join!(ping(&link), ping(&link));
    assert!(first.unwrap_err().to_string().contains("no answer within 500ms"));
    second.unwrap_err();
    assert!(begun.elapsed() >= short().response);
    assert!(matches!(link.state(), LinkState::Down { .. }), "{link:?}");
    process.cont();
    link.until_up().await;
    assert_eq!(ping(&link).await.unwrap(), "PONG");
}

#[tokio::test]
async fn a_server_hangs_also_when_no_caller_waits_as_long_as_the_limit() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = Link::new(server_of(&process), short());
    ping(&link).await.unwrap();
    process.stop();
    // Callers that give up early, one after the other: the link finds out all the same.
    let begun = Instant::now();
    while link.state() == LinkState::Up {
        let _ = tokio::time::timeout(Duration::from_millis(20), ping(&link)).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert!(begun.elapsed() >= short().response);
}

#[tokio::test]
async fn a_command_that_is_not_answered_fails_when_the_server_is_killed() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = Link::new(server_of(&process), limits());
    ping(&link).await.unwrap();
    let mut command = redis::cmd("BLPOP");
    command.arg("nothing").arg(0);
    let mut waiting = pin!(link.run::<()>(&command));
    assert!(begin(waiting.as_mut()).await.is_none());
    process.stop();
    process.kill();
    let error = waiting.await.unwrap_err();
    assert!(error.is_io_error(), "{error}");
    assert_eq!(kind_of(error).name(), "unavailable");
    process.restart();
    link.until_up().await;
    ping(&link).await.unwrap();
}

#[tokio::test]
async fn a_restart_that_happened_while_the_link_was_idle_fails_no_command() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = Link::new(server_of(&process), LinkLimits { idle: Duration::ZERO, ..limits() });
    for _ in 0..5 {
        let answers = tokio::join!(ping(&link), ping(&link), ping(&link));
        assert!(answers.0.is_ok() && answers.1.is_ok() && answers.2.is_ok(), "{answers:?}");
        process.restart();
    }
}

#[tokio::test]
async fn while_a_server_is_down_commands_fail_at_once_and_say_why() {
    let process = RedisProcess::start(RedisOptions::default());
    let long = Duration::from_secs(600);
    let link =
        Link::new(server_of(&process), LinkLimits { first_pause: long, longest_pause: long, ..limits() });
    ping(&link).await.unwrap();
    process.kill();
    ping(&link).await.unwrap_err();
    process.restart();
    // It is there again, but the pause is not over: nobody dials.
    for _ in 0..1000 {
        let error = ping(&link).await.unwrap_err().to_string();
        assert!(error.contains("the connection was closed"), "{error}");
    }
    let LinkState::Down { next_dial, .. } = link.state() else { panic!("{link:?}") };
    assert!(next_dial > long / 3 && next_dial <= long, "{next_dial:?}");
    assert_eq!(process.cli(&["INFO", "clients"]).matches("connected_clients:1").count(), 1);
}

#[tokio::test]
async fn many_commands_dial_once() {
    // Takes connections and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let link = Link::new(RedisServer::new("127.0.0.1", port), short());
    let mut commands = JoinSet::new();
    for _ in 0..100 {
        let link = link.clone();
        commands.spawn(async move { ping(&link).await });
    }
    let failed = async {
        while let Some(answer) = commands.join_next().await {
            let error = answer.unwrap().unwrap_err().to_string();
            assert!(error.contains("no answer within 500ms"), "{error}");
        }
    };
    let mut accepted = Vec::new();
    let accept = async {
        loop {
            accepted.push(listener.accept().await.unwrap());
        }
    };
    tokio::select! {
        () = failed => {}
        () = accept => {}
    }
    assert_eq!(accepted.len(), 1);
}

#[tokio::test]
async fn a_dial_whose_caller_is_gone_goes_on() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = link_to(&process);
    let mut dropped = Box::pin(ping(&link));
    assert!(begin(dropped.as_mut()).await.is_none());
    drop(dropped);
    link.until_up().await;
    assert_eq!(process.cli(&["CLIENT", "LIST"]).matches("name=tlog").count(), 1);
}

#[tokio::test]
async fn callers_that_give_up_do_not_make_room_for_more_on_a_hung_server() {
    let process = RedisProcess::start(RedisOptions::default());
    let bounds = LinkLimits { commands: 4, ..limits() };
    let link = Link::new(server_of(&process), bounds);
    ping(&link).await.unwrap();
    process.stop();
    for i in 0..100 {
        let command = echo(&i.to_string());
        let mut given_up = Box::pin(link.run::<String>(&command));
        assert!(begin(given_up.as_mut()).await.is_none());
        // Lets the connection write.
        tokio::task::yield_now().await;
    }
    let last = echo("last");
    let mut waiting = pin!(link.run::<String>(&last));
    assert!(begin(waiting.as_mut()).await.is_none());
    process.cont();
    assert_eq!(waiting.await.unwrap(), "last");
    let calls = process.cli(&["INFO", "commandstats"]);
    let calls = calls.lines().find_map(|line| line.strip_prefix("cmdstat_echo:calls=")).unwrap();
    let calls: u32 = calls.split(',').next().unwrap().parse().unwrap();
    assert!((1..=5).contains(&calls), "{calls}");
}

#[tokio::test]
async fn bytes_on_the_way_are_bounded_and_one_large_command_goes_alone() {
    let process = RedisProcess::start(RedisOptions::default());
    let link = Link::new(server_of(&process), LinkLimits { bytes: 1000, ..limits() });
    let large = "x".repeat(1 << 20);
    let mut commands = JoinSet::new();
    for i in 0..50 {
        let (link, text) = (link.clone(), if i % 10 == 0 { large.clone() } else { format!("{i:0>600}") });
        commands.spawn(async move { assert_eq!(link.run::<String>(&echo(&text)).await.unwrap(), text) });
    }
    while let Some(done) = commands.join_next().await {
        done.unwrap();
    }
}

/// Each answer is that of its own command, whatever happens to the server, the connection and the callers meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_never_taken_for_that_of_another_command() {
    let process = RedisProcess::start(RedisOptions::default());
    let bounds = LinkLimits { response: Duration::from_millis(60), commands: 32, ..short() };
    let link = Link::new(server_of(&process), bounds);
    link.until_up().await;
    let seed = 7_u64;
    let mut workers = JoinSet::new();
    for worker in 0..16_u64 {
        let link = link.clone();
        workers.spawn(async move {
            // A small generator that repeats from a seed.
            let mut random = seed.wrapping_mul(31).wrapping_add(worker) | 1;
            let mut answered = 0;
            for n in 0..400 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let text = format!("seed {seed} worker {worker} command {n}");
                let command = echo(&text);
                let answer = link.run::<String>(&command);
                // Some callers give up early.
                let patience =
                    if random >> 60 == 0 { Duration::from_millis(1) } else { Duration::from_secs(10) };
                match tokio::time::timeout(patience, answer).await {
                    Ok(Ok(answer)) => {
                        assert_eq!(answer, text);
                        answered += 1;
                    }
                    Ok(Err(error)) => {
                        assert!(error.is_io_error(), "{error}");
                        link.until_up().await;
                    }
                    Err(_) => {}
                }
            }
            answered
        });
    }
    let disturb = async {
        let client_killed = || drop(process.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]));
        loop {
            for round in 0..4 {
                process.stop();
                // Below the limit and above it.
                tokio::time::sleep(Duration::from_millis(20 + 40 * round)).await;
                process.cont();
                client_killed();
            }
        }
    };
    let all = async {
        let mut answered = 0;
        while let Some(done) = workers.join_next().await {
            answered += done.unwrap();
        }
        answered
    };
    let answered = tokio::select! {
        answered = all => answered,
        () = disturb => 0,
    };
    assert!(answered > 100, "{answered}");
}
