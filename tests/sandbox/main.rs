//! End-to-end tests over real pods, sidecars and a control plane. One file a subject.

use std::process::ExitCode;

mod affinity;
mod agent;
mod annotated;
mod asker;
mod attack;
mod behaved;
mod bodies;
mod certificate;
mod control_plane;
mod crossing;
mod ends;
mod envoy;
mod floods;
mod foreign;
mod forged;
mod grpc;
mod grpc_xds;
mod h2spec;
mod hellos;
mod herd;
mod hostile;
mod http1;
mod http2;
mod identities;
mod interim;
mod ipv6;
mod limited;
mod logs;
mod long;
mod mole;
mod networks;
mod outage;
mod overload;
mod place;
mod process;
mod proof;
mod rotation;
mod rules;
mod skew;
mod smtp;
mod storms;
mod strangers;
mod table;
mod tcp;
mod tls;
mod websocket;

fn main() -> ExitCode {
    // Before any thread exists: this process may be one that prepares a container.
    tulle_sandbox::dispatch();
    if let Some(done) = role() {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
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
        annotated::cases(),
        floods::cases(),
        tcp::cases(),
        smtp::cases(),
        websocket::cases(),
        ipv6::cases(),
        control_plane::cases(),
        control_plane::hosts::cases(),
        hostile::cases(),
        hostile::hosts::cases(),
        hostile::tables::cases(),
        outage::cases(),
        skew::cases(),
        herd::cases(),
        envoy::cases(),
        envoy::control::cases(),
        envoy::traffic::cases(),
        envoy::trust::cases(),
        overload::cases(),
        logs::cases(),
        table::cases(),
        h2spec::cases(),
        bodies::cases(),
        crossing::cases(),
        ends::cases(),
        hellos::cases(),
        identities::cases(),
        interim::cases(),
        forged::cases(),
        long::cases(),
        networks::cases(),
        rotation::cases(),
        storms::cases(),
        strangers::cases(),
    ];
    tulle_tests::run(files.into_iter().flatten().collect())
}

/// What this program does in some pods instead of what `tulle` does.
fn role() -> Option<anyhow::Result<()>> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["tulle", attack::ROLE, ..] => Some(attack::run(&arguments[2..])),
        ["tulle", logs::ROLE, ..] => Some(logs::run(&arguments[2..])),
        ["tulle", strangers::ROLE, ..] => Some(strangers::run(&arguments[2..])),
        ["tulle", "control", ..] => rotation::control(&arguments[1..]),
        ["tulle", "proxy", "run"] => {
            logs::sidecar().or_else(|| limited::sidecar(&overload::LIMITS))
        }
        _ => None,
    }
}
