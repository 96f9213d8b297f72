//! Records a few blocks in a vdisk's log: `cargo run -p tlog-client --example record_blocks -- 127.0.0.1:11211 myimg`.

use tlog_client::{Client, ClientOptions};
use tlog_proto::{BlockIndex, VdiskId};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(servers), Some(vdisk)) = (arguments.next(), arguments.next()) else {
        return Err("usage: record_blocks SERVER,... VDISK".into());
    };
    let client = Client::connect(servers, VdiskId::new(&vdisk)?, ClientOptions::default()).await?;
    for number in 0..100_u8 {
        let index = BlockIndex::new(number.into()).ok_or("index too high")?;
        client.set(index, vec![number; 4096]).await?;
    }
    client.delete(BlockIndex::default()).await?;
    client.flush().await?;
    println!("durable: sequences {} to before {}", client.first_sequence(), client.next_sequence());
    client.close().await;
    Ok(())
}
