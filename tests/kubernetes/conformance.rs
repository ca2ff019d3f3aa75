//! The Gateway API's conformance suite for meshes, in a cluster with the definitions that it comes with.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_cluster::{Cluster, Image, cache};
use tulle_tests::kubernetes::install;
use tulle_tests::{Kubernetes, Ran, gate};

tulle_tests::cases! { in Kubernetes:
    meshes_of_the_gateway_api_are_like_this_one ["conformance", "alone"];
}

/// Profiles, and how many tests their cores have, so that none is lost unseen.
const PROFILES: [(&str, u64); 2] = [("MESH-GRPC", 2), ("MESH-HTTP", 7)];
/// The profile that counts what is extended: none of those tests is about gRPC.
const EXTENDS: &str = "MESH-HTTP";
/// What a mesh may do beside the core: all of it.
const EXTENDED: [&str; 9] = [
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];
/// The core, and what is no feature of meshes but is asked for by tests of them.
const OTHERS: [&str; 8] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];
/// Tests that no profile counts.
const UNCOUNTED: [&str; 7] = [
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshPorts",
];
/// What the suite's manifests run: Istio's server for tests, whose client is beside it.
const IMAGE: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";

async fn meshes_of_the_gateway_api_are_like_this_one(_: &Kubernetes) -> anyhow::Result<()> {
    // The definitions of routes would be in the way of who has others.
    let cluster = Cluster::start(2)?;
    define(&cluster)?;
    install::install(&cluster, &[]).await?;

    let folder = tempfile::tempdir()?;
    cluster.load(&echo(folder.path())?)?;
    let report = folder.path().join("report.yaml");
    let ran = suite(&cluster, &report)?;
    let report = std::fs::read_to_string(&report).with_context(|| tail(&ran))?;
    let report: Value = serde_saphyr::from_str(&report)?;
    let verdict = judge(&report, &ran);
    verdict.with_context(|| format!("{}\n{report:#}", tail(&ran)))
}

/// Puts the definitions of the Gateway API into a cluster, as its standard channel has them.
pub(crate) fn define(cluster: &Cluster) -> anyhow::Result<()> {
    let definitions = cache().join("gateway-api/standard");
    let definitions = definitions.to_str().context("a path in UTF-8")?;
    cluster.ask(["apply", "--server-side", "-f", definitions], "")?;
    Ok(())
}

/// The image, with a certificate for its TLS port.
fn echo(folder: &Path) -> anyhow::Result<Image> {
    let signed = rcgen::generate_simple_self_signed(["echo".to_owned()])?;
    let (certificate, key) = (folder.join("cert.crt"), folder.join("cert.key"));
    std::fs::write(&certificate, signed.cert.pem())?;
    std::fs::write(&key, signed.signing_key.serialize_pem())?;
    let image = Image::new(IMAGE, &["/usr/local/bin/server"])
        .file(certificate, "/cert.crt")
        .file(key, "/cert.key");
    let programs = ["server", "client"].into_iter();
    Ok(programs.fold(image, |image, name| {
        let program = gate::built("echo").join(name);
        image.file(program, Path::new("/usr/local/bin").join(name))
    }))
}

/// Runs the suite to its end.
fn suite(cluster: &Cluster, report: &Path) -> anyhow::Result<Ran> {
    let profiles = PROFILES.map(|(name, _)| name);
    let features: Vec<_> = OTHERS.into_iter().chain(EXTENDED).collect();
    let mut command = cluster
        .control()
        .on_network(gate::built("conformance.test"));
    command
        .args(["-test.run=^TestConformance$", "-test.v"])
        .arg(format!("--conformance-profiles={}", profiles.join(",")))
        .arg(format!("--supported-features={}", features.join(",")))
        .arg("--namespace-labels=tulle.dev/inject=enabled")
        .arg(format!("--report-output={}", report.display()))
        .args(["--organization=tulle", "--project=tulle", "--version=test"])
        .args(["--url=https://tulle.dev", "--contact=https://tulle.dev"])
        // The cluster goes as a whole.
        .args([
            "--cleanup-base-resources=false",
            "--disable-parallel-tests=true",
        ])
        .env_clear()
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", report.parent().context("it is in a folder")?)
        .stdin(Stdio::null());
    Ok(command.output()?.into())
}

/// Fails unless everything was run and succeeded.
fn judge(report: &Value, ran: &Ran) -> anyhow::Result<()> {
    ensure!(ran.status == 0, "the suite ends with {}", ran.status);
    for (name, tests) in PROFILES {
        let profiles = report["profiles"].as_array();
        let mut profiles = profiles.into_iter().flatten();
        let profile = profiles.find(|it| it["name"] == name);
        let profile = profile.with_context(|| format!("{name} is not in the report"))?;
        let core = &profile["core"];
        succeeded(core).with_context(|| format!("the core of {name}"))?;
        let passed = &core["statistics"]["Passed"];
        ensure!(*passed == tests, "{passed} tests passed in {name}");
        if name == EXTENDS {
            let extended = &profile["extended"];
            succeeded(extended).with_context(|| format!("what {name} extends"))?;
            ensure!(extended["supportedFeatures"] == json!(EXTENDED), "{name}");
            ensure!(extended["unsupportedFeatures"].is_null(), "{name}");
        }
    }
    for name in UNCOUNTED {
        let passed = format!("--- PASS: TestConformance/{name} ");
        ensure!(ran.stdout.contains(&passed), "{name} did not pass");
    }
    Ok(())
}

fn succeeded(level: &Value) -> anyhow::Result<()> {
    let statistics = &level["statistics"];
    let whole = statistics["Failed"] == 0 && statistics["Skipped"] == 0;
    ensure!(level["result"] == "success" && whole, "{level}");
    Ok(())
}

/// What failed, and the end of what the suite said.
fn tail(ran: &Ran) -> String {
    let failed = ran.stdout.lines().filter(|line| line.contains("--- FAIL"));
    let lines: Vec<_> = ran.stdout.lines().collect();
    let last = &lines[lines.len().saturating_sub(60)..];
    let failed: Vec<_> = failed.collect();
    format!(
        "{}\n...\n{}\n{}",
        failed.join("\n"),
        last.join("\n"),
        ran.stderr
    )
}
