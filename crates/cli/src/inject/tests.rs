//! Documents in, documents out: what gets a sidecar, what is left alone, what is refused.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    inject: InjectArgs,
}

fn args(extra: &[&str]) -> InjectArgs {
    Program::parse_from([&["inject", "-f", "-"], extra].concat()).inject
}

fn inject_text(text: &str, extra: &[&str]) -> Result<String, String> {
    let args = args(extra);
    let values = parse(text).expect("YAML");
    let mut documents = Vec::new();
    for value in values {
        flatten(Path::new("-"), value, &mut documents).map_err(|error| output::chain(&error))?;
    }
    let namespaces = namespaces(&documents);
    let config = args.config().map_err(|error| output::chain(&error))?;
    let mut text = String::new();
    for document in documents {
        let part = inject(document, &args, &namespaces, &config);
        text.push_str(&part.map_err(|error| output::chain(&error))?);
    }
    Ok(text)
}

const POD: &str = "
kind: Pod
metadata: { name: web, namespace: shop, annotations: { version: '1.10', yes: 'no' } }
spec: { containers: [{ name: web, args: ['8080'] }] }
";

#[test]
fn a_mode_in_octal_stays_the_mode_that_kubectl_reads() {
    let volume = "{ name: v, secret: { secretName: s, defaultMode: 0644 } }";
    let pod = POD.replace("spec: {", &format!("spec: {{ volumes: [{volume}],"));
    let injected = inject_text(&pod, &[]).expect("injected");
    assert!(injected.contains("defaultMode: 420\n"), "{injected}");
    let other = "apiVersion: example.org/v1\nkind: Foo\nmode: 0o17\nother: 0755\nname: '0755'\n";
    let passed = inject_text(other, &[]).expect("passed on");
    assert!(passed.contains("mode: 15\n"), "{passed}");
    assert!(passed.contains("other: 493\n"), "{passed}");
    assert!(passed.contains("0755"), "a string stays one: {passed}");
}

#[test]
fn a_pod_in_yaml_gets_a_sidecar_and_strings_stay_strings() {
    let yaml = inject_text(POD, &[]).expect("injected");
    let document: Value = serde_saphyr::from_str(yaml.trim_start_matches("---\n")).expect("YAML");
    assert_eq!(document["spec"]["initContainers"][1]["name"], "tulle-proxy");
    assert_eq!(document["spec"]["containers"][0]["args"][0], "8080");
    assert_eq!(document["metadata"]["annotations"]["version"], "1.10");
    assert_eq!(document["metadata"]["annotations"]["yes"], "no");
}

#[test]
fn a_namespace_among_the_files_can_say_no() {
    for (label, expected) in [("disabled", false), ("''", false), ("enabled", true)] {
        let text = format!(
            "kind: Namespace\nmetadata: {{ name: shop, labels: {{ tulle.dev/inject: {label} }} }}\n---{POD}"
        );
        let json = inject_text(&text, &["--output", "json"]).expect("injected");
        assert_eq!(json.contains("tulle-proxy"), expected, "{label}");
        assert_eq!(json.lines().count(), 2);
    }
}

#[test]
fn a_revision_injects_what_is_its_own_and_what_is_injected_by_hand() {
    let namespace =
        "kind: Namespace\nmetadata: { name: shop, labels: { tulle.dev/rev: next } }\n---";
    for (text, revision, expected) in [
        (POD.to_owned(), "default", true),
        (POD.to_owned(), "next", true),
        (format!("{namespace}{POD}"), "default", false),
        (format!("{namespace}{POD}"), "next", true),
        (
            POD.replace("name: web,", "name: web, labels: { tulle.dev/rev: other },"),
            "next",
            false,
        ),
    ] {
        let json = inject_text(&text, &["--output", "json", "--revision", revision]);
        let json = json.expect("injected");
        assert_eq!(
            json.contains("\"tulle-proxy\""),
            expected,
            "{revision} {text}"
        );
        let (own, others) = (
            json.contains("tulle-control-next."),
            json.contains("tulle-control."),
        );
        assert_eq!(
            (own, others),
            (
                expected && revision == "next",
                expected && revision != "next"
            )
        );
    }
}

#[test]
fn sidecars_are_as_the_options_of_the_injector_say() {
    let said = [
        "--output=json",
        "--image=registry.example/proxy:1",
        "--image-pull-policy=Never",
        "--proxy-cpu-limit=1",
        "--proxy-memory-limit=1Gi",
        "--proxy-access-log=off",
        "--classic-sidecars",
    ];
    let json = inject_text(POD, &said).expect("injected");
    let document: Value = serde_json::from_str(&json).expect("JSON");
    let sidecar = &document["spec"]["containers"][0];
    assert_eq!(sidecar["name"], "tulle-proxy");
    assert_eq!(sidecar["image"], "registry.example/proxy:1");
    assert_eq!(sidecar["imagePullPolicy"], "Never");
    let limits = &sidecar["resources"]["limits"];
    assert_eq!(
        (&limits["cpu"], &limits["memory"]),
        (&"1".into(), &"1Gi".into())
    );
    for (option, value) in [("--proxy-cpu-limit", "much"), ("--revision", "A b")] {
        let parsed = Program::try_parse_from(["inject", "-f", "-", option, value]);
        let error = parsed.expect_err("it is refused").to_string();
        assert!(error.contains(option) && error.contains(value), "{error}");
    }
}

#[test]
fn a_list_counts_as_its_items_and_only_pods_have_patches() {
    let text = "kind: List\nitems: [{ kind: Service }, { kind: Pod, spec: { containers: [] } }]";
    let patches = inject_text(text, &["--output", "patch"]).expect("injected");
    assert_eq!(patches.lines().count(), 1);
    assert!(patches.starts_with('['));
}

#[test]
fn a_kind_that_is_not_known_stays_as_it_is_and_is_told_of_if_it_makes_pods() {
    let rollout = "
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: { name: web }
spec: { template: { spec: { containers: [{ name: web }] } } }
";
    let passed = inject_text(rollout, &["--output", "json"]).expect("passed on");
    let passed: Value = serde_json::from_str(&passed).expect("JSON");
    let given: Value = serde_saphyr::from_str(rollout).expect("YAML");
    assert_eq!(passed, given);
    for (spec, makes_pods) in [
        ("{ template: { spec: { containers: [] } } }", true),
        ("{ template: { spec: { steps: [] } } }", false),
        ("{ template: text }", false),
        ("{ containers: [] }", false),
    ] {
        let document = serde_saphyr::from_str(&format!("kind: Any\nspec: {spec}"));
        let document = document.expect("YAML");
        let foreign = has_foreign_template(&document);
        let decision = Decision::Skip(SkipReason::NotAWorkload);
        let told = told(&decision, foreign, true).unwrap_or_default();
        assert_eq!(
            told.contains("its kind is not known here"),
            makes_pods,
            "{spec}: {told}"
        );
    }
}

#[test]
fn a_bad_document_is_refused_by_name_and_cause() {
    let error = inject_text("kind: Pod\nmetadata: { name: web }\n", &[]).expect_err("no spec");
    assert_eq!(
        error,
        "Pod default/web in - cannot be injected: Pod has no spec: add it"
    );
}

#[test]
fn a_list_whose_items_are_no_list_is_refused_and_not_lost() {
    let error = inject_text("{ kind: List, items: 5 }", &[]).unwrap_err();
    for part in ["-", "List", "items", "5"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}
