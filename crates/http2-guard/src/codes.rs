//! What the codes say with which streams are reset here.

/// `REFUSED_STREAM`.
pub(super) const REFUSED: &[u8] = &[0, 0, 0, 7];

/// Whether what came on a stream was malformed, not just late: `PROTOCOL_ERROR` or `FLOW_CONTROL_ERROR`.
pub(super) fn is_malformed(code: &[u8]) -> bool {
    matches!(code, [0, 0, 0, 1 | 3])
}

/// Whether a stream is reset for what its peer sent: `PROTOCOL_ERROR`, `FLOW_CONTROL_ERROR` or `STREAM_CLOSED`.
pub(super) fn is_fault(code: &[u8]) -> bool {
    matches!(code, [0, 0, 0, 1 | 3 | 5])
}
