//! `istio.workload.Address`: who stands behind an IP address.

use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::istio::workload::{Address, WorkloadType, address};

use super::error::{DecodeError, unpack};
use crate::config::Workload;

/// A workload; the wire has no labels of it, so the canonical name and revision stand for app and version.
pub(super) fn decode(any: &Any) -> Result<Workload, DecodeError> {
    let message: Address = unpack(any)?;
    let Some(address::Type::Workload(workload)) = message.r#type else {
        return Err(DecodeError::missing(
            "workload",
            "only workloads are expected here",
        ));
    };
    let kind = match workload.workload_type() {
        WorkloadType::Deployment => "Deployment",
        WorkloadType::Cronjob => "CronJob",
        WorkloadType::Pod => "Pod",
        WorkloadType::Job => "Job",
    };
    let name = if workload.workload_name.is_empty() {
        workload.name
    } else {
        workload.workload_name
    };
    Ok(Workload {
        name: name.into(),
        kind: kind.into(),
        namespace: workload.namespace.into(),
        service_account: workload.service_account.into(),
        app: workload.canonical_name.as_str().into(),
        version: workload.canonical_revision.as_str().into(),
        canonical_name: workload.canonical_name.into(),
        canonical_revision: workload.canonical_revision.into(),
        cluster: workload.cluster_id.into(),
    })
}
