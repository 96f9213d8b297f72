#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
use bytes::{Bytes, BytesMut};
use std::time::Instant;
use tlog_client::{Client, ClientOptions};
use tlog_proto::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
#[tokio::main]
async fn main() {
    let size: usize = std::env::args().nth(1).map_or(4096, |s| s.parse().unwrap());
    let total: usize = 2 << 30;
    let count = (total / size) as u64;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async move {
            let listener = {
                let l = listener.into_std().unwrap();
                tokio::net::TcpListener::from_std(l).unwrap()
            };
            let (mut s, _) = listener.accept().await.unwrap();
            s.set_nodelay(true).unwrap();
            let mut b = [0u8; 4096];
            let _ = s.read(&mut b).await.unwrap();
            let mut out = BytesMut::new();
            HandshakeResponse {
                version: Version::CURRENT,
                status: HandshakeStatus::Ok,
                last_flushed: None,
            }
            .encode_into(&mut out);
            s.write_all(&out).await.unwrap();
            let mut frame = BytesMut::new();
            Block::set(
                Sequence(1),
                BlockIndex::default(),
                Timestamp(1),
                vec![1; size].into(),
            )
            .encode_into(&mut frame);
            let frame = frame.len();
            let mut buf = vec![0; 1 << 17];
            let (mut bytes, mut seen) = (0usize, 0u64);
            loop {
                let n = s.read(&mut buf).await.unwrap();
                if n == 0 {
                    return;
                }
                bytes += n;
                let now = ((bytes / frame) as u64).min(count);
                out.clear();
                for q in seen + 1..=now {
                    Response {
                        status: BlockStatus::RecvOk,
                        sequences: vec![Sequence(q)],
                    }
                    .encode_into(&mut out);
                    if q % 25 == 0 || q == count {
                        let f = (q - 1) / 25 * 25 + 1;
                        Response {
                            status: BlockStatus::FlushOk,
                            sequences: (f..=q).map(Sequence).collect(),
                        }
                        .encode_into(&mut out);
                    }
                }
                seen = now;
                s.write_all(&out).await.unwrap();
            }
        });
    });
    let client = Client::connect(addr, VdiskId::new("x").unwrap(), ClientOptions::default())
        .await
        .unwrap();
    let data = Bytes::from(vec![7; size]);
    let t = Instant::now();
    let h = {
        let client = client.clone();
        tokio::spawn(async move {
            for i in 0..count {
                client
                    .set(BlockIndex::new(i).unwrap(), data.clone())
                    .await
                    .unwrap();
            }
            client.durable_up_to(Sequence(count)).await.unwrap();
        })
    };
    h.await.unwrap();
    let e = t.elapsed();
    println!(
        "{size}: {:.0} MB/s, {:.2} us/block {:?}",
        (count as f64 * size as f64) / e.as_secs_f64() / 1e6,
        e.as_secs_f64() * 1e6 / count as f64,
        client.stats()
    );
}
