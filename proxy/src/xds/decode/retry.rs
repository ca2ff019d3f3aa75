//! Retry policies.

use http::StatusCode;
use tulle_xds_proto::envoy::config::route::v3 as pb;

use super::error::{At, DecodeError, duration, refuse};
use crate::config::route::RetryPolicy;

/// Envoy's longest interval, as a multiple of the first one, where none is given.
const MAX_BACKOFF_FACTOR: u32 = 10;

/// A policy in which nothing is retried.
pub(super) fn none() -> RetryPolicy {
    RetryPolicy {
        attempts: 0,
        status_codes: Vec::new(),
        on_reset: false,
        grpc_codes: Vec::new(),
        ..RetryPolicy::default()
    }
}

pub(super) fn decode(message: &pb::RetryPolicy) -> Result<RetryPolicy, DecodeError> {
    refuse(
        !message.retriable_headers.is_empty(),
        "retriable_headers",
        "use retriable_status_codes",
    )?;
    let by_request = !message.retriable_request_headers.is_empty();
    refuse(
        by_request,
        "retriable_request_headers",
        "use a route that matches the headers",
    )?;
    let mut policy = none();
    policy.attempts = message
        .num_retries
        .as_ref()
        .map_or(1, |number| number.value);
    for condition in message
        .retry_on
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        add_condition(&mut policy, condition, &message.retriable_status_codes)?;
    }
    policy.status_codes.sort();
    policy.status_codes.dedup();
    if let Some(backoff) = &message.retry_back_off {
        let base =
            duration("base_interval", backoff.base_interval.as_ref()).at("retry_back_off")?;
        if let Some(base) = base {
            policy.backoff_base = base;
            policy.backoff_max = base.saturating_mul(MAX_BACKOFF_FACTOR);
        }
        let max = duration("max_interval", backoff.max_interval.as_ref()).at("retry_back_off")?;
        if let Some(max) = max {
            policy.backoff_max = max.max(policy.backoff_base);
        }
    }
    Ok(policy)
}

fn add_condition(
    policy: &mut RetryPolicy,
    condition: &str,
    retriable: &[u32],
) -> Result<(), DecodeError> {
    match condition {
        "5xx" => {
            policy.on_reset = true;
            policy
                .status_codes
                .extend((500..600).filter_map(|code| StatusCode::from_u16(code).ok()));
        }
        "gateway-error" => policy.status_codes.extend([
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ]),
        "retriable-4xx" => policy.status_codes.push(StatusCode::CONFLICT),
        "retriable-status-codes" => {
            for (i, code) in retriable.iter().enumerate() {
                let status = status("", *code).at_index("retriable_status_codes", i)?;
                policy.status_codes.push(status);
            }
        }
        "reset" => policy.on_reset = true,
        // What the app provably never got is retried in any case.
        "connect-failure"
        | "refused-stream"
        | "reset-before-request"
        | "http3-post-connect-failure" => {}
        "cancelled" => policy.grpc_codes.push(1),
        "deadline-exceeded" => policy.grpc_codes.push(4),
        "resource-exhausted" => policy.grpc_codes.push(8),
        "internal" => policy.grpc_codes.push(13),
        "unavailable" => policy.grpc_codes.push(14),
        other => {
            let remedy = "use gateway-error, 5xx, reset, connect-failure, refused-stream, \
                retriable-status-codes or a gRPC status such as unavailable";
            return Err(DecodeError::invalid("retry_on", other, remedy));
        }
    }
    Ok(())
}

/// A status code that an answer may have.
pub(super) fn status(field: &str, code: u32) -> Result<StatusCode, DecodeError> {
    let known = u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code));
    known
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| DecodeError::invalid(field, code, "a status is between 200 and 599"))
}
