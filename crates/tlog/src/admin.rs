//! The admin endpoint: metrics, health, status, and what a person has a running server do.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | 200 while the process runs |
//! | `GET /readyz` | 200 while clients are served, else 503 |
//! | `GET /status` | what the server is doing, JSON |
//! | `POST /vdisks/{vdisk}/scrub?rate=BYTES` | when it is done: what it found and did, JSON |
//! | `POST /vdisks/{vdisk}/prove`, with the header [`TOOL_HEADER`] | when it is done: what was proven of a restore, JSON |
//! | `/vdisks/{vdisk}/pins`, with that header | [`admin_pins`] |
//! | `POST /vdisks/{vdisk}/retention`, JSON | when it is done: what became of a mark, checkpoint or prune, JSON |
//! | `POST /stores/replace`, JSON | when it is done: which stores were filled for which vdisks, JSON |
//!
//! Plain HTTP without passwords: for this machine, or a network that is trusted. What changes stores is taken from this machine
//! alone, and only with the header that [`TOOL_HEADER`] names, which a page in somebody's browser cannot send.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tlog_proto::VdiskId;
use tokio::net::TcpListener;

use crate::admin_pins;
use crate::pins::Pins;
use crate::proof_report::ProofReport;
use crate::replacing::{ReplaceReport, ReplaceRequest};
use crate::retention;
use crate::scrub_report::ScrubReport;

/// What the endpoint asks the server.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Whether clients are served.
    fn is_ready(&self) -> bool;
    /// What the server is doing.
    async fn status(&self) -> Value;
    /// Scrubs a vdisk's log and answers what was found. An error is a sentence for a person.
    async fn scrub(&self, vdisk: &VdiskId, rate: Option<u64>) -> Result<ScrubReport, String>;
    /// Proves that the newest moment of a vdisk can be restored. An error is a sentence for a person.
    async fn prove(&self, vdisk: &VdiskId) -> Result<ProofReport, String>;
    /// What holds history back from being pruned.
    fn pins(&self) -> &Pins;
    /// Names a moment, stores an image of one or removes history, and answers when it is done. An error is a sentence for a person.
    async fn retention(
        &self,
        vdisk: &VdiskId,
        request: retention::Request,
    ) -> Result<retention::Report, String>;
    /// Puts other stores in the place of some, and answers when they are filled. An error is a sentence for a person.
    async fn replace_stores(&self, request: ReplaceRequest) -> Result<ReplaceReport, String>;
}

/// The header that requests which change stores have; its value does not matter.
pub const TOOL_HEADER: &str = "x-tlog-tool";

/// Serves the endpoint until `shutdown` is done.
pub async fn serve(
    listener: TcpListener,
    operations: Arc<dyn Operations>,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_readiness))
        .route("/status", get(show_status))
        .route("/vdisks/{vdisk}/scrub", post(scrub))
        .route("/vdisks/{vdisk}/prove", post(prove))
        .route("/vdisks/{vdisk}/retention", post(retain))
        .route("/stores/replace", post(replace_stores))
        .merge(admin_pins::router(operations.pins().clone()))
        .with_state(Endpoint { operations, metrics });
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}

#[derive(Clone)]
struct Endpoint {
    operations: Arc<dyn Operations>,
    metrics: PrometheusHandle,
}

async fn show_metrics(State(endpoint): State<Endpoint>) -> Response {
    let text = endpoint.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn show_readiness(State(endpoint): State<Endpoint>) -> Response {
    match endpoint.operations.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n").into_response(),
    }
}

async fn show_status(State(endpoint): State<Endpoint>) -> Json<Value> {
    Json(endpoint.operations.status().await)
}

#[derive(serde::Deserialize)]
struct ScrubQuery {
    rate: Option<u64>,
}

async fn scrub(
    State(endpoint): State<Endpoint>,
    Path(vdisk): Path<String>,
    Query(query): Query<ScrubQuery>,
) -> Response {
    let vdisk = match VdiskId::new(&vdisk) {
        Ok(vdisk) => vdisk,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    tracing::info!(%vdisk, "scrub begins, asked for at the admin endpoint");
    match endpoint.operations.scrub(&vdisk, query.rate).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn prove(State(endpoint): State<Endpoint>, Path(vdisk): Path<String>, headers: HeaderMap) -> Response {
    if !headers.contains_key(TOOL_HEADER) {
        return refused(StatusCode::FORBIDDEN, "a proof is asked for with the header x-tlog-tool");
    }
    let vdisk = match VdiskId::new(&vdisk) {
        Ok(vdisk) => vdisk,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match endpoint.operations.prove(&vdisk).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn retain(
    State(endpoint): State<Endpoint>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Path(vdisk): Path<String>,
    body: Bytes,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() || !headers.contains_key(TOOL_HEADER) {
        let why = "marks, checkpoints and prunes are asked for with 'tlog mark', 'tlog checkpoint' and 'tlog prune' alone: from the \
                   server's own machine, with the header x-tlog-tool";
        return refused(StatusCode::FORBIDDEN, why);
    }
    let vdisk = match VdiskId::new(&vdisk) {
        Ok(vdisk) => vdisk,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let request: retention::Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &format!("not such a request: {error}")),
    };
    match endpoint.operations.retention(&vdisk, request).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn replace_stores(
    State(endpoint): State<Endpoint>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() || !headers.contains_key(TOOL_HEADER) {
        let why = "stores are replaced by 'tlog store replace' alone: from the server's own machine, with the header x-tlog-tool";
        return refused(StatusCode::FORBIDDEN, why);
    }
    let request: ReplaceRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        // The text itself may have a password in it.
        Err(error) => {
            let why = format!(
                "not a request to replace stores: {:?} at column {}",
                error.classify(),
                error.column()
            );
            return refused(StatusCode::BAD_REQUEST, &why);
        }
    };
    match endpoint.operations.replace_stores(request).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

pub(crate) fn refused(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
