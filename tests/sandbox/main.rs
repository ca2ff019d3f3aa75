//! End-to-end tests over real pods, sidecars and a control plane. One file a subject.

use std::process::ExitCode;

mod affinity;
mod agent;
mod bodies;
mod certificate;
mod control_plane;
mod envoy;
mod floods;
mod foreign;
mod grpc;
mod grpc_xds;
mod h2spec;
mod herd;
mod hostile;
mod http1;
mod http2;
mod ipv6;
mod outage;
mod place;
mod proof;
mod rules;
mod skew;
mod smtp;
mod table;
mod tcp;
mod tls;
mod websocket;

fn main() -> ExitCode {
    let files = [
        http1::cases(),
        http2::cases(),
        grpc::cases(),
        grpc_xds::cases(),
        grpc_xds::peers::cases(),
        tls::cases(),
        rules::cases(),
        affinity::cases(),
        agent::cases(),
        floods::cases(),
        tcp::cases(),
        smtp::cases(),
        websocket::cases(),
        ipv6::cases(),
        control_plane::cases(),
        hostile::cases(),
        outage::cases(),
        skew::cases(),
        herd::cases(),
        envoy::cases(),
        envoy::control::cases(),
        envoy::traffic::cases(),
        envoy::trust::cases(),
        table::cases(),
        h2spec::cases(),
        bodies::cases(),
    ];
    tulle_tests::run(files.into_iter().flatten().collect())
}
