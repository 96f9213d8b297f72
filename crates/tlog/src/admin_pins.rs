//! The part of the admin endpoint by which readers elsewhere pin history while they read it.
//!
//! | request | answer |
//! |---|---|
//! | `POST /vdisks/{vdisk}/pins` `{"from": N, "who": TEXT, "seconds": N}` | `{"id": TEXT, "first": N}`: everything from `first` on stays |
//! | `PUT /vdisks/{vdisk}/pins/{id}` `{"seconds": N}` | `{}`; 404 where it has ended: take a new one |
//! | `DELETE /vdisks/{vdisk}/pins/{id}` | `{}` |

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{post, put};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tlog_proto::{AggregationNumber, VdiskId};

use crate::admin::{TOOL_HEADER, refused};
use crate::pins::{PinError, PinId, Pins};

/// What a reader asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct PinRequest {
    /// Lowest aggregation that must stay.
    pub from: u64,
    /// Who reads.
    pub who: String,
    /// How long the pin lives unless it is renewed.
    pub seconds: u64,
}

/// For how long a pin is to live on.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// From now on.
    pub seconds: u64,
}

/// These requests, on those pins.
pub(crate) fn router<S>(pins: Pins) -> Router<S> {
    Router::new()
        .route("/vdisks/{vdisk}/pins", post(take))
        .route("/vdisks/{vdisk}/pins/{id}", put(renew).delete(end))
        .with_state(pins)
}

async fn take(
    State(pins): State<Pins>,
    Path(vdisk): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(&headers, &vdisk, |vdisk| {
        let PinRequest { from, who, seconds } = parsed(&body)?;
        let granted = pins.lease(vdisk, AggregationNumber(from), &who, Duration::from_secs(seconds));
        let granted = granted.map_err(of_pins)?;
        tracing::info!(%vdisk, from = granted.first, who, seconds, "history is pinned");
        Ok(Json(granted).into_response())
    })
}

async fn renew(
    State(pins): State<Pins>,
    Path((vdisk, id)): Path<(String, PinId)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(&headers, &vdisk, |vdisk| {
        let RenewRequest { seconds } = parsed(&body)?;
        pins.renew(vdisk, &id, Duration::from_secs(seconds)).map_err(of_pins)?;
        Ok(Json(json!({})).into_response())
    })
}

async fn end(
    State(pins): State<Pins>,
    Path((vdisk, id)): Path<(String, PinId)>,
    headers: HeaderMap,
) -> Response {
    answer(&headers, &vdisk, |vdisk| {
        pins.end(vdisk, &id);
        tracing::info!(%vdisk, "a pin was let go");
        Ok(Json(json!({})).into_response())
    })
}

type Refused = (StatusCode, String);

fn answer(
    headers: &HeaderMap,
    vdisk: &str,
    act: impl FnOnce(&VdiskId) -> Result<Response, Refused>,
) -> Response {
    // A page in somebody's browser cannot send it.
    if !headers.contains_key(TOOL_HEADER) {
        return refused(
            StatusCode::FORBIDDEN,
            "history is pinned by tlog alone, with the header x-tlog-tool",
        );
    }
    let vdisk = VdiskId::new(vdisk).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()));
    vdisk.and_then(|vdisk| act(&vdisk)).unwrap_or_else(|(status, why)| refused(status, &why))
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("not such a request: {error}")))
}

fn of_pins(error: PinError) -> Refused {
    let status = match &error {
        PinError::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        PinError::Lease | PinError::Name => StatusCode::BAD_REQUEST,
        PinError::Ended { .. } => StatusCode::NOT_FOUND,
    };
    (status, error.to_string())
}
