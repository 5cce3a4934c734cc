//! Over TCP nobody is anybody without a key, and whatever names a sandbox goes there or nowhere.

use super::fixture::{Daemon, Place, exchange};
use crate::e2b::{Purpose, Tokens};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use offshoot_types::VmId;
use std::net::SocketAddr;
use tokio::net::TcpStream;

async fn ask(address: SocketAddr, head: &str, headers: &[(&str, &str)]) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), head, headers, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_a_port_says_that_it_is_alive_and_nothing_else() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    for path in ["/health", "/healthz"] {
        let answer = ask(address, &format!("GET {path}"), &[]).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    }
    for head in ["GET /v1/health", "GET /v1/vms", "POST /v1/daemon/stop", "GET /nowhere", "PUT /v1/vms"] {
        let answer = ask(address, head, &[]).await;
        assert!(
            answer.starts_with("HTTP/1.1 401") && answer.contains(r#""code":"unauthenticated""#),
            "{answer}"
        );
        assert!(answer.contains("x-request-id"), "{answer}");
    }
    daemon.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "the port is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_with_those_who_begin_with_it() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let request = hyper::Request::get(format!("http://{address}/health")).body(String::new()).unwrap();
    let answered = async move {
        let status = sender.send_request(request).await.unwrap().status();
        drop(sender);
        status
    };
    let (status, _ended) = tokio::join!(answered, connection);
    assert_eq!((status.as_u16(), status.is_success()), (200, true));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_a_sandbox_goes_there_or_nowhere() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let gone =
        |id: &str| format!(r#"{{"code":502,"message":"The sandbox was not found","sandboxId":"{id}"}}"#);
    // Not even the paths that need no key elsewhere.
    for head in ["GET /health", "GET /v1/vms", "POST /v1/daemon/stop"] {
        let answer = ask(address, head, &[("E2b-Sandbox-Id", "ghost")]).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.ends_with(&gone("ghost")), "{answer}");
        let answer = ask(address, head, &[("Host", "49983-ghost.localhost")]).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.ends_with(&gone("ghost")), "{answer}");
    }

    let vm = daemon.boot("web").await;
    let tokens = Tokens::load(&place.state_dir()).unwrap();
    let token = tokens.of(vm.id, Purpose::Access);
    let stranger = tokens.of(VmId::new(), Purpose::Access);
    let to = |port: &'static str, token: &'static str| {
        [("E2b-Sandbox-Id", "web"), ("E2b-Sandbox-Port", port), ("X-Access-Token", token)]
    };
    let (token, stranger): (&'static str, &'static str) = (token.leak(), stranger.leak());
    for port in ["49983", "49999", "80"] {
        let answer = ask(address, "POST /nowhere", &to(port, stranger)).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("unauthorized access"), "{answer}");
    }
    let program = [("E2b-Sandbox-Id", "web"), ("E2b-Sandbox-Port", "80")];
    for traffic in [None, Some(("E2b-Traffic-Access-Token", token))] {
        let headers: Vec<_> = program.into_iter().chain(traffic).collect();
        let answer = ask(address, "GET /", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("traffic access token"), "{answer}");
    }
    for port in ["49983", "49999"] {
        let answer = ask(address, "POST /nowhere", &to(port, token)).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        // The native API is not behind it.
        let answer = ask(address, "GET /v1/vms", &to(port, token)).await;
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("vms"), "{answer}");
    }
    daemon.client.stop(&"web".parse().unwrap(), &Default::default()).await.unwrap();
    let answer = ask(address, "GET /health", &to("49983", token)).await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.ends_with(&gone("web")),
        "it does not run: {answer}"
    );
    daemon.stop().await;
}
