//! Asking the admin endpoint of a running server.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::TOOL_HEADER;

/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 20;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The server is not there.
    #[error("the admin endpoint {address} cannot be reached: {source}")]
    Connect {
        /// Where it should be.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or the answer is no HTTP.
    #[error("the admin endpoint {address} did not answer: {source}")]
    Http {
        /// Where it is.
        address: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refused.
    #[error("the server at {address} answers {status}: {body}")]
    Refused {
        /// Where it is.
        address: String,
        /// The status of HTTP.
        status: StatusCode,
        /// What it said.
        body: String,
    },
}

/// Sends a request without a body and answers the body of the answer. Waits as long as the server takes.
pub async fn ask(address: &str, method: Method, path: &str) -> Result<String, AdminError> {
    ask_with(address, method, path, Bytes::new()).await
}

/// The same with a body, and the header by which the server knows its tool.
pub async fn ask_with(address: &str, method: Method, path: &str, body: Bytes) -> Result<String, AdminError> {
    let connect = async {
        let timed_out = || std::io::Error::new(std::io::ErrorKind::TimedOut, "nobody answers");
        tokio::time::timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| timed_out())?
    };
    let stream =
        connect.await.map_err(|source| AdminError::Connect { address: address.to_owned(), source })?;
    let http = |source: Box<dyn std::error::Error + Send + Sync>| AdminError::Http {
        address: address.to_owned(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http(error.into()))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, address)
        .header(TOOL_HEADER, env!("CARGO_PKG_VERSION"))
        .body(Full::new(body))
        .map_err(|error| http(error.into()))?;
    let answer = sender.send_request(request).await.map_err(|error| http(error.into()))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(http)?;
    connection.abort();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    match status.is_success() {
        true => Ok(body),
        false => {
            Err(AdminError::Refused { address: address.to_owned(), status, body: body.trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::admin::{Operations, serve};
    use crate::pins::Pins;
    use crate::proof_report::ProofReport;
    use crate::replacing::{ReplaceReport, ReplaceRequest};
    use crate::scrub_report::ScrubReport;
    use async_trait::async_trait;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::{Value, json};
    use tlog_proto::VdiskId;

    fn report() -> ScrubReport {
        ScrubReport {
            vdisk: "vda".to_owned(),
            aggregations: 3,
            whole: true,
            unreadable: vec![],
            filled_stores: vec![],
            stores: vec![],
        }
    }

    #[derive(Default)]
    struct Scripted(AtomicBool, Pins);

    #[async_trait]
    impl Operations for Scripted {
        fn is_ready(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        async fn status(&self) -> Value {
            json!({ "vdisks": [] })
        }

        async fn scrub(&self, vdisk: &VdiskId, rate: Option<u64>) -> Result<ScrubReport, String> {
            match vdisk.as_str() {
                "vda" if rate.is_none_or(|rate| rate == 7) => Ok(report()),
                other => Err(format!("no log of {other}")),
            }
        }

        async fn retention(
            &self,
            vdisk: &VdiskId,
            request: crate::retention::Request,
        ) -> Result<crate::retention::Report, String> {
            Err(format!("no {request:?} of {vdisk}"))
        }

        async fn prove(&self, vdisk: &VdiskId) -> Result<ProofReport, String> {
            Err(format!("vdisk {vdisk} cannot be proven here"))
        }

        fn pins(&self) -> &Pins {
            &self.1
        }

        async fn replace_stores(&self, request: ReplaceRequest) -> Result<ReplaceReport, String> {
            assert_eq!(request.replace, [("file:a".to_owned(), "file:b".to_owned())]);
            Ok(ReplaceReport::default())
        }
    }

    #[tokio::test]
    async fn every_request_of_the_endpoint_is_answered() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("tlog_test_total").increment(3));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let operations = Arc::new(Scripted::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let server = tokio::spawn(serve(listener, Arc::clone(&operations) as _, recorder.handle(), stopped));

        let get = async |path: &str| ask(&address, Method::GET, path).await;
        let post = async |path: &str| ask(&address, Method::POST, path).await;
        assert_eq!(get("/healthz").await.unwrap(), "ok\n");
        let refused = |answer: Result<String, AdminError>| match answer.unwrap_err() {
            AdminError::Refused { status, body, .. } => (status.as_u16(), body),
            other => panic!("{other}"),
        };
        assert_eq!(refused(get("/readyz").await).0, 503);
        operations.0.store(true, Ordering::Relaxed);
        assert_eq!(get("/readyz").await.unwrap(), "ready\n");
        assert!(get("/metrics").await.unwrap().contains("tlog_test_total 3"));
        assert_eq!(get("/status").await.unwrap(), r#"{"vdisks":[]}"#);
        let answer = post("/vdisks/vda/scrub").await.unwrap();
        assert_eq!(serde_json::from_str::<ScrubReport>(&answer).unwrap(), report());
        assert!(post("/vdisks/vda/scrub?rate=7").await.is_ok());
        assert_eq!(refused(post("/vdisks/vda/scrub?rate=x").await).0, 400);
        let mark = br#"{"mark":{"name":"a","at":"newest"}}"#;
        let asked = ask_with(&address, Method::POST, "/vdisks/vda/retention", Bytes::from_static(mark)).await;
        let (status, said) = refused(asked);
        assert!(status == 500 && said.contains("Newest") && said.contains("vda"), "{said}");
        assert_eq!(refused(post("/vdisks/vda/retention").await).0, 400);
        let replace = async |body: &'static str| {
            ask_with(&address, Method::POST, "/stores/replace", Bytes::from_static(body.as_bytes())).await
        };
        let answer = replace(r#"{"vdisk":null,"replace":[["file:a","file:b"]]}"#).await.unwrap();
        assert_eq!(serde_json::from_str::<ReplaceReport>(&answer).unwrap(), ReplaceReport::default());
        let (status, said) = refused(replace(r#"{"replace":"redis://:hush@a:1"}"#).await);
        assert!(status == 400 && !said.contains("hush"), "{said}");
        assert_eq!(
            refused(post("/vdisks/vdb/scrub").await),
            (500, r#"{"error":"no log of vdb"}"#.to_owned())
        );
        assert_eq!(refused(post("/vdisks/..%2f/scrub").await).0, 400);
        assert_eq!(refused(get("/vdisks/vda/scrub").await).0, 405);
        assert_eq!(refused(get("/nothing").await).0, 404);

        drop(stop);
        server.await.unwrap().unwrap();
        assert!(matches!(get("/healthz").await, Err(AdminError::Connect { .. })));
    }
}
