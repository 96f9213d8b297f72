//! The admin endpoint: metrics, health, status, and the scrub of a running server.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | 200 while the process runs |
//! | `GET /readyz` | 200 while clients are served, else 503 |
//! | `GET /status` | what the server is doing, JSON |
//! | `POST /vdisks/{vdisk}/scrub` | when it is done: what it found and did, JSON |
//!
//! Plain HTTP without passwords: for this machine, or a network that is trusted.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tlog_proto::VdiskId;
use tokio::net::TcpListener;

use crate::scrub_report::ScrubReport;

/// What the endpoint asks the server.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Whether clients are served.
    fn is_ready(&self) -> bool;
    /// What the server is doing.
    async fn status(&self) -> Value;
    /// Scrubs a vdisk's log and answers what was found. An error is a sentence for a person.
    async fn scrub(&self, vdisk: &VdiskId) -> Result<ScrubReport, String>;
}

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
        .with_state(Endpoint { operations, metrics });
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
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

async fn scrub(State(endpoint): State<Endpoint>, Path(vdisk): Path<String>) -> Response {
    let vdisk = match VdiskId::new(&vdisk) {
        Ok(vdisk) => vdisk,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    tracing::info!(%vdisk, "scrub begins, asked for at the admin endpoint");
    match endpoint.operations.scrub(&vdisk).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
