//! The OpenAPI document: the checked-in one is the one the code makes, and it says what a client needs to know.

use offshoot_server::openapi_json;
use serde_json::Value;
use std::{fs, path::Path};

/// `cargo xtask openapi` sets it: then the test that compares writes instead.
const WRITE: &str = "OFFSHOOT_WRITE_OPENAPI";

fn document() -> Value {
    serde_json::from_str(&openapi_json()).unwrap()
}

/// Path, method and description of every operation.
fn operations() -> Vec<(String, String, Value)> {
    let paths = document()["paths"].as_object().unwrap().clone();
    let of_path = |(path, item): (String, Value)| {
        let methods = item.as_object().unwrap().clone();
        methods.into_iter().map(move |(method, operation)| (path.clone(), method, operation))
    };
    paths.into_iter().flat_map(of_path).collect()
}

#[test]
fn the_checked_in_document_is_the_one_the_code_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/v1.json");
    if std::env::var_os(WRITE).is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, openapi_json()).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == openapi_json(), "run `cargo xtask openapi` and commit openapi/v1.json");
}

#[test]
fn every_operation_says_what_it_does_and_which_errors_it_answers() {
    let operations = operations();
    assert!(operations.len() >= 52, "{} operations", operations.len());
    for (path, method, operation) in operations {
        assert!(operation["operationId"].is_string(), "{method} {path} has no id");
        assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status < &"400".to_owned()), "{method} {path}: no success");
        // Nothing can go wrong where nothing is asked.
        if path == "/health" || path == "/healthz" {
            continue;
        }
        for always in ["400", "403", "500"] {
            let codes = &responses[always]["x-error-codes"];
            assert!(codes.is_array(), "{method} {path} does not list the codes of {always}");
        }
    }
}

#[test]
fn every_route_of_the_plan_is_in_the_document() {
    let operations = operations();
    let has = |method: &str, path: &str| operations.iter().any(|(p, m, _)| p == path && m == method);
    for (method, path) in [
        ("get", "/v1/health"),
        ("get", "/v1/openapi.json"),
        ("get", "/v1/daemon"),
        ("post", "/v1/daemon/stop"),
        ("get", "/v1/vms"),
        ("post", "/v1/vms"),
        ("get", "/v1/vms/{vm}"),
        ("delete", "/v1/vms/{vm}"),
        ("get", "/v1/run"),
        ("get", "/v1/vms/{vm}/exec"),
        ("put", "/v1/vms/{vm}/files"),
        ("get", "/v1/events"),
        ("post", "/v1/images/{image}/verify"),
        ("post", "/v1/vms/{vm}/snapshots"),
        ("delete", "/v1/snapshots/{snapshot}"),
        ("post", "/v1/snapshots/{snapshot}/verify"),
        ("post", "/v1/forks"),
        ("post", "/v1/vms/{vm}/rollback"),
        ("post", "/v1/vms/{vm}/undo"),
        ("post", "/v1/vms/{vm}/suspend"),
        ("post", "/v1/vms/{vm}/transactions"),
        ("post", "/v1/vms/{vm}/transactions/{transaction}/commit"),
        ("get", "/v1/vms/{vm}/try"),
        ("get", "/v1/vms/{vm}/race"),
        ("get", "/v1/vms/{vm}/code"),
    ] {
        assert!(has(method, path), "{method} {path}");
    }
}

#[test]
fn operation_ids_are_unique() {
    let mut ids: Vec<String> =
        operations().iter().map(|(_, _, operation)| operation["operationId"].to_string()).collect();
    ids.sort();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    let (text, document) = (openapi_json(), document());
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is missing");
    }
}
