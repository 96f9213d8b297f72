//! Shows that a client survives its servers: appends a block every few milliseconds and says what happens to its
//! connection. Kill the server that it is connected to, with whatever signal, and see.
//!
//! ```text
//! cargo run -p tlog-client --example failover -- 127.0.0.1:11211,127.0.0.1:11311 myimg 10000
//! ```
//!
//! The servers must have the same stores, which more than one server can use where they are Redis servers.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tlog_client::{Client, ClientOptions, Event, Events};
use tlog_proto::{BlockIndex, VdiskId};
use tokio::time::{MissedTickBehavior, interval};

const PACE: Duration = Duration::from_millis(3);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (servers, vdisk, blocks) = match &arguments[..] {
        [servers, vdisk] => (servers, vdisk, Ok(1000)),
        [servers, vdisk, blocks] => (servers, vdisk, blocks.parse()),
        _ => return usage(),
    };
    let Ok(blocks) = blocks else { return usage() };
    match append_and_watch(servers, vdisk, blocks).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: failover SERVER,SERVER VDISK [BLOCKS]");
    ExitCode::from(64)
}

async fn append_and_watch(servers: &str, vdisk: &str, blocks: u64) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(servers, VdiskId::new(vdisk)?, ClientOptions::default()).await?;
    println!("connected to {}", client.server().as_deref().unwrap_or("nobody any more"));
    let watching = tokio::spawn(print(client.events()));

    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut handles = Vec::new();
    for number in 0..blocks {
        pace.tick().await;
        let index = BlockIndex::new(number).ok_or("more blocks than a vdisk can have")?;
        handles.push(client.set(index, number.to_le_bytes().repeat(512)).await?);
        if handles.len() % 100 == 0 {
            println!("{} blocks handed over, {} durable", handles.len(), client.stats().durable_blocks);
        }
    }
    client.flush().await?;
    for durable in handles {
        durable.await?;
    }
    println!("every handle resolved: {blocks} blocks durable, {} sent again", client.stats().resent_blocks);
    client.close().await;
    watching.await?;
    Ok(())
}

async fn print(mut events: Events) {
    while let Some(event) = events.next().await {
        match event {
            Event::Reconnecting { server, cause } => println!("reconnecting: {server} is lost, {cause}"),
            Event::NotReconnected(error) => println!("not reconnected: {error}"),
            Event::Reconnected { server, unflushed_blocks } => {
                println!("reconnected: to {server}, {unflushed_blocks} blocks are not durable");
            }
            _ => {}
        }
    }
}
