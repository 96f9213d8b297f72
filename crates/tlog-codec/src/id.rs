//! The name of an aggregation: a hash of all that is known of it without a key.

use tlog_crypto::blake2b_256;
use tlog_proto::{AggregationId, VdiskId};

/// The id of format 2; everything that it covers can be checked without a key.
pub(crate) fn aggregation_id(
    vdisk: &VdiskId,
    header: &[u8],
    sealed_manifest: &[u8],
    payload_hashes: &[[u8; 32]],
) -> AggregationId {
    let length = length_of(vdisk);
    AggregationId(blake2b_256(&id_input(vdisk, &length, header, sealed_manifest, payload_hashes)))
}

/// What it is a hash of, in pieces; `length` is [`length_of`] the vdisk's name.
pub(crate) fn id_input<'a>(
    vdisk: &'a VdiskId,
    length: &'a [u8; 2],
    header: &'a [u8],
    sealed_manifest: &'a [u8],
    payload_hashes: &'a [[u8; 32]],
) -> [&'a [u8]; 5] {
    [length, vdisk.as_str().as_bytes(), header, sealed_manifest, payload_hashes.as_flattened()]
}

pub(crate) fn length_of(vdisk: &VdiskId) -> [u8; 2] {
    (vdisk.as_str().len() as u16).to_le_bytes()
}
