//! Bootstraps as a client reads them.

use std::path::PathBuf;

use clap::Parser;
use tulle_runtime::env::Env;
use tulle_runtime::names::{agent, variables};

use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn place(control: &str) -> Place {
    Place::from_env(Env::from_pairs([
        (variables::POD_NAME, "web-1"),
        (variables::POD_NAMESPACE, "shop"),
        (variables::POD_IP, "10.1.2.3"),
        (variables::SERVICE_ACCOUNT, "web"),
        (variables::CONTROL_ADDRESS, control),
    ]))
    .unwrap()
}

/// The bootstrap that these flags make, of a control plane at this address.
fn written(control: &str, flags: &[&str]) -> (PathBuf, Value) {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = memory.path().join("bootstrap.json");
    let file_name = file.display().to_string();
    let mut words = vec!["agent", "--bootstrap-file", &file_name];
    words.extend(flags);
    let args = Program::parse_from(words).args;
    let place = place(control);
    let files = CredentialFiles::open(memory.path(), None, vec![]).unwrap();
    let upstream = Upstream::new(&place, args.xds_listen.as_ref());
    write(&args, &place, &files, &upstream).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    (
        memory.path().to_owned(),
        serde_json::from_str(&text).unwrap(),
    )
}

#[test]
fn envoy_calls_the_control_plane_with_the_files_and_verifies_its_name() {
    let (dir, bootstrap) = written("control.example:15012", &["--bootstrap", "envoy"]);
    assert_eq!(
        bootstrap["node"]["id"],
        "envoy~10.1.2.3~web-1.shop~shop.svc.cluster.local"
    );
    let dynamic = &bootstrap["dynamic_resources"];
    assert_eq!(dynamic["ads_config"]["api_type"], "DELTA_GRPC");
    let admin = &bootstrap["admin"]["address"]["socket_address"];
    assert_eq!(
        (&admin["address"], &admin["port_value"]),
        (&"127.0.0.1".into(), &15000.into())
    );
    let cluster = &bootstrap["static_resources"]["clusters"][0];
    assert_eq!(cluster["type"], "STRICT_DNS");
    let tls = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
    let own = &tls["tls_certificate_sds_secret_configs"][0];
    let path = &own["sds_config"]["path_config_source"]["path"];
    assert_eq!(*path, dir.join(agent::SDS_SVID_FILE).display().to_string());
    let names = &tls["combined_validation_context"]["default_validation_context"];
    let matcher = &names["match_typed_subject_alt_names"][0]["matcher"]["exact"];
    assert_eq!(*matcher, "tulle-control.tulle-system.svc");
}

#[test]
fn envoys_flags_are_minded() {
    let flags = [
        "--bootstrap",
        "envoy",
        "--xds-variant",
        "sotw",
        "--envoy-admin-port",
        "9901",
        "--xds-listen",
        "127.0.0.1:15010",
    ];
    let (_, bootstrap) = written("[fd00::1]:15012", &flags);
    assert_eq!(
        bootstrap["dynamic_resources"]["ads_config"]["api_type"],
        "GRPC"
    );
    assert_eq!(
        bootstrap["admin"]["address"]["socket_address"]["port_value"],
        9901
    );
    let cluster = &bootstrap["static_resources"]["clusters"][0];
    assert_eq!(cluster["type"], "STATIC");
    assert!(
        cluster.get("transport_socket").is_none(),
        "loopback has no TLS"
    );
}

#[test]
fn envoys_secrets_name_the_files_and_are_read_again_when_these_change() {
    let dir = Path::new("/run/agent");
    let secrets: Vec<(&str, Value)> = secrets(dir)
        .into_iter()
        .map(|(name, text)| (name, serde_json::from_str(&text).unwrap()))
        .collect();
    let svid = &secrets[0].1["resources"][0];
    assert_eq!(
        (secrets[0].0, &svid["name"]),
        (agent::SDS_SVID_FILE, &agent::SDS_SVID.into())
    );
    let certificate = &svid["tls_certificate"];
    assert_eq!(certificate["private_key"]["filename"], "/run/agent/tls.key");
    assert_eq!(certificate["watched_directory"]["path"], "/run/agent");
    let roots = &secrets[1].1["resources"][0];
    assert_eq!(
        (secrets[1].0, &roots["name"]),
        (agent::SDS_ROOTS_FILE, &agent::SDS_ROOTS.into())
    );
    assert_eq!(
        roots["validation_context"]["trusted_ca"]["filename"],
        "/run/agent/ca.crt"
    );
}

#[test]
fn grpc_goes_through_the_relay_in_plaintext_and_directly_with_the_files() {
    let cases = [
        (
            vec!["--xds-listen", "127.0.0.1:15010"],
            "127.0.0.1:15010",
            "insecure",
        ),
        (
            vec!["--xds-listen", "unix:/run/a/xds"],
            "unix:///run/a/xds",
            "insecure",
        ),
        (vec![], "dns:///control.example:15012", "tls"),
    ];
    for (mut flags, uri, credentials) in cases {
        flags.extend(["--bootstrap", "grpc"]);
        let (dir, bootstrap) = written("control.example:15012", &flags);
        let server = &bootstrap["xds_servers"][0];
        assert_eq!(server["server_uri"], uri);
        assert_eq!(server["channel_creds"][0]["type"], credentials);
        assert_eq!(
            bootstrap["node"]["id"],
            "grpc~10.1.2.3~web-1.shop~shop.svc.cluster.local"
        );
        let provider = &bootstrap["certificate_providers"]["default"];
        assert_eq!(provider["plugin_name"], "file_watcher");
        let key = dir.join(agent::KEY).display().to_string();
        assert_eq!(provider["config"]["private_key_file"], key);
    }
}
