use super::*;

fn set(assignments: &[&str]) -> Result<Values, String> {
    let mut layered = Layered::new(Profile::Default);
    for assignment in assignments {
        layered = layered.set(assignment).map_err(|error| error.to_string())?;
    }
    layered.values().map_err(|error| error.to_string())
}

fn profile(profile: Profile) -> Values {
    Layered::new(profile).values().expect("good values")
}

#[test]
fn profiles_say_how_many_there_are() {
    let all = [Profile::Default, Profile::Ha, Profile::Dev];
    let all = all.map(|it| profile(it).control.deployment.replicas);
    assert_eq!(all, [2, 3, 1]);
    let ha = profile(Profile::Ha).control.deployment;
    assert!(ha.autoscaling.enabled && ha.autoscaling.max_replicas == 10);
}

#[test]
fn later_values_win_and_numbers_may_be_text() {
    let values = set(&[
        "control.replicas=5",
        "control.log=debug",
        "image.tag=1.20",
        r#"image.registry="[::1]:5000/mesh""#,
        "control.nodeSelector.disk=ssd",
        r"control.nodeSelector.kubernetes\.io/os=linux",
        "control.resources.limits.memory=null",
        "control.tolerations=[{key: sla, operator: Gt, value: '950'}]",
        "proxy.accessLog=off",
    ])
    .expect("good values");
    let control = values.control;
    assert_eq!(
        (control.deployment.replicas, control.log.as_str()),
        (5, "debug")
    );
    let image = (values.image.registry.as_str(), values.image.tag.as_str());
    assert_eq!(image, ("[::1]:5000/mesh", "1.20"));
    assert_eq!(values.proxy.access_log, AccessLog::Off);
    assert_eq!(control.deployment.node_selector["disk"], "ssd");
    let os = &control.deployment.node_selector["kubernetes.io/os"];
    assert_eq!(os, "linux");
    let limits = control.deployment.resources.limits;
    assert_eq!(limits.map(|it| it.len()), Some(0));
    let text = "control: {replicas: 4, resources: {requests: {cpu: 1}}}\nrevision: next\nproxy: {cpuLimit: 1}\n";
    let file = Layered::new(Profile::Dev).file("x.yaml", text);
    let values = file.and_then(Layered::values).expect("good values");
    assert_eq!(
        (values.control.deployment.replicas, values.revision.as_str()),
        (4, "next")
    );
    assert_eq!(values.injector.deployment.replicas, 1, "the profile's");
}

#[test]
fn bad_values_are_named_with_where_they_come_from() {
    for (assignment, words) in [
        ("control.replicas", "write PATH=VALUE"),
        ("control.replicas=0", "control has no replicas"),
        ("control.replicas=many", "invalid type"),
        ("control.replicsa=3", "unknown field `replicsa`"),
        ("contrl.replicas=3", "unknown field `contrl`"),
        (
            "control.autoscaling.minReplicas=11",
            "more than maxReplicas 10",
        ),
        (
            "injector.failurePolicy=Sometimes",
            "unknown variant `Sometimes`",
        ),
        ("injector.timeoutSeconds=31", "Kubernetes takes 1 to 30"),
        ("revision=Next", "is no name"),
        ("revision=", "is no name"),
        (
            "injector.alwaysInject=[{matchLabel: {app: x}}]",
            "injector.alwaysInject: unknown field `matchLabel`",
        ),
        ("injector.alwaysInject=[{}]", "would select every pod"),
        ("injector.neverInject=[{}]", "would select every pod"),
        (
            "injector.alwaysInject=[{matchLabels: {n: 1}}]",
            "invalid type",
        ),
        (
            "injector.alwaysInject=[{matchExpressions: [{key: a, operator: Is}]}]",
            "unknown variant `Is`",
        ),
        (
            "injector.alwaysInject=[{matchExpressions: [{key: a, operator: In}]}]",
            "no values",
        ),
        (
            "control.resources.limits.memory=1g",
            "\"1g\" is no quantity",
        ),
        ("control.resources.limitz={}", "unknown field `limitz`"),
        (
            "injector.priorityClassName=A B",
            "injector.priorityClassName: \"A B\" is no name of an object",
        ),
        ("control.caIssuerSecret=a_b", "is no name of an object"),
        ("image.pullSecrets=[-a]", "image.pullSecrets"),
        ("proxy.imagePullSecrets=['']", "proxy.imagePullSecrets"),
        ("control.tolerations=[{key: 1}]", "control.tolerations: "),
        ("control.log=bad[[", "tulle control would not start"),
        ("injector.log=bad[[", "tulle injector would not start"),
        ("control.leafTtl=abc", "tulle control would not start"),
        ("clusterDomain=a b", "would not start"),
        ("proxy.cpuRequest=zz", "tulle injector would not start"),
        ("proxy.log=loud", "tulle injector would not start"),
        ("injector.extraArgs=[--nonsense]", "--nonsense"),
        ("proxy.accessLog=text", "unknown variant `text`"),
        ("image=[", "--set image=["),
        (
            "control.caIssuerSecret=null",
            "missing field `caIssuerSecret`",
        ),
        (
            "injector.priorityClassName=~",
            "missing field `priorityClassName`",
        ),
        (
            "proxy.memoryRequest=512Mi",
            "proxy.memoryRequest 512Mi is more than proxy.memoryLimit 256Mi",
        ),
        ("proxy.cpuLimit=5m", "proxy.cpuRequest 10m is more than"),
        ("image.tag=null", "missing field `tag`"),
        ("revision=null", "missing field `revision`"),
        ("image.tag=1,control.replicas=9", "is no tag"),
        ("image.tag=-x", "is no tag"),
        ("image.registry=ghcr.io/tulle,image.tag=1", "image.registry"),
        ("image.registry=ghcr.io/", "image.registry"),
        ("image.registry=", "image.registry"),
    ] {
        let error = set(&[assignment]).expect_err(assignment);
        assert!(
            error.contains(words) && error.contains(assignment),
            "{error}"
        );
    }
    let error = Layered::new(Profile::Default).file("my.yaml", "a: b");
    assert!(
        error
            .expect_err("no such value")
            .to_string()
            .contains("my.yaml")
    );
}

#[test]
fn values_are_good_together_or_bad_by_the_layer_with_which_they_became_so() {
    let (least, most) = (
        "control.autoscaling.minReplicas=12",
        "control.autoscaling.maxReplicas=20",
    );
    for (assignments, expected) in [
        (&[least, most][..], None),
        (&[most, least], None),
        (&[least, "control.log=debug"], Some(least)),
        (&["proxy.memoryRequest=1Gi", "proxy.memoryLimit=2Gi"], None),
        (&[least, most, "image.tag=a b"], Some("image.tag=a b")),
    ] {
        let error = set(assignments).err();
        let origin = expected.map(|it| format!("--set {it}: "));
        let begins = |error: &String| error.starts_with(&*origin.clone().unwrap_or_default());
        assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
        assert!(error.as_ref().is_none_or(begins), "{error:?}");
    }
}

#[test]
fn the_schema_of_the_chart_is_what_these_types_say() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/charts/tulle/values.schema.json"
    );
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(Values)).expect("a schema");
    let schema = schema + "\n";
    if std::env::var_os("TULLE_WRITE_GOLDEN").is_some() {
        std::fs::write(path, &schema).expect("the chart's folder");
    }
    let written = std::fs::read_to_string(path).expect("the chart's schema");
    assert_eq!(written, schema, "write it anew with TULLE_WRITE_GOLDEN=1");
}
