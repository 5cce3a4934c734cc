//! The OpenAPI document: what only the document says, and the document as text.

use offshoot_api::v1;
use utoipa::{
    OpenApi,
    openapi::{Info, License, OpenApi as Document},
};

/// Types that are spoken on WebSockets, which no route names as a body, and the error every route may answer.
#[derive(OpenApi)]
#[openapi(components(schemas(
    v1::ErrorBody,
    v1::ExecRequest,
    v1::RunRequest,
    v1::ClientMessage,
    v1::ServerMessage,
)))]
struct Spoken;

/// The document without its routes.
pub fn frame() -> Document {
    let mut document = Spoken::openapi();
    let mut info = Info::new("Offshoot", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Micro-VMs for agents: create, run, read, write, destroy. Served on a Unix socket to the user who owns \
         it. Every error is an `ErrorBody`; every response carries its `x-request-id`."
            .into(),
    );
    info.license = Some(License::new("Apache-2.0"));
    document.info = info;
    document
}

pub fn document() -> Document {
    let (_, document) = super::routes().split_for_parts();
    document
}

/// The document as it is served and checked in: pretty-printed, with a final newline.
pub fn openapi_json() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("the document is plain data");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations() -> Vec<(String, String, serde_json::Value)> {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let paths = document["paths"].as_object().unwrap().clone();
        let of_path = |(path, item): (String, serde_json::Value)| {
            let methods = item.as_object().unwrap().clone();
            methods.into_iter().map(move |(method, operation)| (path.clone(), method, operation))
        };
        paths.into_iter().flat_map(of_path).collect()
    }

    #[test]
    fn the_checked_in_document_is_the_one_the_code_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/v1.json");
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(checked_in == openapi_json(), "run `cargo xtask openapi` and commit openapi/v1.json");
    }

    #[test]
    fn every_operation_says_what_it_does_and_which_errors_it_answers() {
        let operations = operations();
        assert!(operations.len() >= 35, "{} operations", operations.len());
        for (path, method, operation) in operations {
            assert!(operation["operationId"].is_string(), "{method} {path} has no id");
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status < &"400".to_owned()), "{method} {path}: no success");
            for always in ["400", "403", "500"] {
                let codes = &responses[always]["x-error-codes"];
                assert!(codes.is_array(), "{method} {path} does not list the codes of {always}");
            }
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
        let text = openapi_json();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name} is missing");
        }
    }
}
