//! FleetLock: others who reboot the machine ask the agent, over real sockets, with the real agent and its holds.
//!
//! Never: an answer that is compared with anything but the protocol's page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in what the tests share, as in the tests")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, NodeBed, converger};
use converger::fleetlock::protocol::{Call, Endpoint, REQUEST_BYTES_MAX, Refusal, read, written, zincati_id};
use proptest::prelude::*;

/// A node whose agent stays and listens.
struct Served {
    node: NodeBed,
    port: u16,
    agent: Option<Child>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Served {
    fn new(bed: &Bed, name: &str) -> Self {
        let node = bed.node(name);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = node.text("etc/converger/agent.toml");
        let listen = format!("[fleetlock]\nlisten = \"127.0.0.1:{port}\"\n\n[sandbox]");
        node.put("etc/converger/agent.toml", &settings.replace("[sandbox]", &listen));
        node.once().exits(0);
        let mut served = Self { node, port, agent: None };
        served.start();
        served
    }

    fn start(&mut self) {
        let mut command = converger();
        let settings = self.node.root.join("etc/converger/agent.toml");
        command.arg("agent").arg("--root").arg(&self.node.root).arg("--settings").arg(settings);
        self.agent = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("the endpoint answers", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// What the recorder counts is another boot of the sandbox.
    fn boot(&mut self) {
        self.stop();
        let file = "run/converger/recorded.json";
        let path = self.node.root.join(file);
        let text = std::fs::read_to_string(path).unwrap_or_else(|_| r#"{"packages":{},"actions":[]}"#.to_owned());
        let mut recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
        recorded["reboots"] = (recorded["reboots"].as_u64().unwrap_or(0) + 1).into();
        self.node.put(file, &recorded.to_string());
        self.start();
    }

    /// As the protocol's page calls curl: status, and the error.
    fn curl(&self, what: &str) -> (u16, String, String) {
        let body = self.node.root.join("body.json");
        let id = &self.node.name;
        let text =
            format!("{{\n  \"client_params\": {{\n    \"group\": \"default\",\n    \"id\": \"{id}\"\n  }}\n}}\n");
        std::fs::write(&body, text).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "130", "-w", "\n%{http_code}"]);
        curl.args(["-H", "fleet-lock-protocol: true", "-d"]).arg(format!("@{}", body.display()));
        let output = curl.arg(format!("http://127.0.0.1:{}/v1/{what}", self.port)).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let (body, status) = said.rsplit_once('\n').unwrap();
        let status = status.parse().unwrap_or_else(|_| panic!("{said} {}", String::from_utf8_lossy(&output.stderr)));
        if status == 200 {
            assert_eq!(body, "");
            return (200, String::new(), String::new());
        }
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error.as_object().unwrap().len(), 2, "{error}");
        let word = |key: &str| error[key].as_str().unwrap().to_owned();
        (status, word("kind"), word("value"))
    }

    /// The error's kind; empty after a 200. A run that is on may be waited for in vain.
    fn asks(&self, what: &str) -> String {
        loop {
            let (status, kind, value) = self.curl(what);
            assert_eq!(status == 200, kind.is_empty());
            assert_eq!(kind.is_empty(), value.is_empty());
            if kind != "fleetlock-busy" {
                return kind;
            }
        }
    }

    #[track_caller]
    fn comes_to(&self, what: &str, kind: &str) {
        let began = Instant::now();
        loop {
            let (_, said, value) = self.curl(what);
            if said == kind {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(300), "{what} goes on saying {said}: {value}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[track_caller]
fn until(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(300), "{what} did not happen within 300 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The table; what nodes wait for stands below it.
fn holds(bed: &Bed) -> String {
    let listed = bed.converger(&["holds", "list"]).exits(0).out;
    listed.split_once("\n\n").map_or(listed.clone(), |(table, _)| format!("{table}\n"))
}

/// The example of the protocol's page, and that both requests may be repeated.
#[test]
fn a_reboot_is_asked_for_and_given_up_as_often_as_anybody_likes() {
    let bed = Bed::new();
    for name in &bed::NODES[1..] {
        bed.node(name).once().exits(0);
    }
    let web01 = Served::new(&bed, "web01");
    assert_eq!(web01.curl("steady-state"), (200, String::new(), String::new()), "nothing is held");
    web01.comes_to("pre-reboot", "");
    assert!(holds(&bed).contains("web01"), "{}", holds(&bed));
    assert_eq!(web01.asks("pre-reboot"), "");
    until("it says so", || web01.node.report()["reason"] == "rebooting");
    assert_eq!(holds(&bed).matches("web01").count(), 1, "{}", holds(&bed));
    assert_eq!(web01.asks("steady-state"), "");
    assert_eq!(holds(&bed), "no holds\n");
    assert_eq!(web01.asks("steady-state"), "");
    until("it goes on", || web01.node.report()["state"] == "converged");
}

/// G26, G38: the same holds as any: one member at a time, over the boot, until the group sees it healthy; never without the
/// others.
#[test]
fn the_hold_lasts_over_the_boot_and_keeps_the_others_where_they_are() {
    let bed = Bed::new();
    bed.node("web03").once().exits(0);
    let mut web01 = Served::new(&bed, "web01");
    let web02 = Served::new(&bed, "web02");
    web01.comes_to("pre-reboot", "");
    let (status, kind, value) = web02.curl("pre-reboot");
    assert_eq!((status, kind.as_str(), value.as_str()), (409, "held-by-peer", "web01 has web"));
    assert_eq!(web02.asks("steady-state"), "", "it holds nothing");

    // An agent that is started anew in the same boot has lent it still, and begins nothing.
    web01.stop();
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("news");
    web01.start();
    until("it looked", || web01.node.report()["reason"] == "rebooting");
    assert_eq!(web01.asks("pre-reboot"), "");
    assert!(!web01.node.text("etc/motd").contains("in production"));
    assert_eq!(web02.asks("pre-reboot"), "held-by-peer");

    // In the next boot it settles; then the hold goes back, and whoever asks is told so.
    web01.boot();
    web01.comes_to("steady-state", "");
    until("the hold went back", || holds(&bed) == "no holds\n");
    until("it goes on", || web01.node.text("etc/motd").contains("in production"));
    web02.comes_to("pre-reboot", "");

    // A machine that never comes back keeps it.
    drop(web02);
    assert_eq!(web01.asks("pre-reboot"), "held-by-peer");
}

/// G38: it comes back sick. The hold stays, and the client is told.
#[test]
fn a_member_that_does_not_come_back_healthy_keeps_its_hold() {
    let bed = Bed::new();
    for name in &bed::NODES[1..] {
        bed.node(name).once().exits(0);
    }
    let mut web01 = Served::new(&bed, "web01");
    web01.comes_to("pre-reboot", "");
    web01.stop();
    web01.node.put("run/converger/units.fail", "web.service gate\n");
    web01.boot();
    web01.comes_to("steady-state", "gate-failed");
    assert!(holds(&bed).contains("web01"));
    web01.node.put("run/converger/units.fail", "");
    web01.comes_to("steady-state", "");
    assert_eq!(holds(&bed), "no holds\n");
}

/// Asked again, it is judged again: the yes of before is taken back, and the client has heard it.
#[test]
fn a_yes_is_taken_back_when_the_client_asks_again_and_the_others_are_not_well() {
    let bed = Bed::new();
    let others = ["web02", "web03"].map(|name| {
        let node = bed.node(name);
        node.once().exits(0);
        node
    });
    let web01 = Served::new(&bed, "web01");
    web01.comes_to("pre-reboot", "");
    others[0].meddle("web.service", |unit| unit["state"] = "failed".into());
    let (status, kind, value) = web01.curl("pre-reboot");
    assert_eq!((status, kind.as_str()), (409, "degraded"), "{value}");
    assert!(value.contains("1 of 2 other members of web are healthy, 2 are needed"), "{value}");
    until("it went back", || holds(&bed) == "no holds\n");
    others[0].once().exits(0);
    web01.comes_to("pre-reboot", "");
}

#[test]
fn a_reboot_waits_for_what_is_not_done() {
    let bed = Bed::new();
    for name in &bed::NODES[1..] {
        bed.node(name).once().exits(0);
    }
    let web01 = Served::new(&bed, "web01");
    std::fs::remove_file(web01.node.root.join("etc/motd")).unwrap();
    std::fs::create_dir(web01.node.root.join("etc/motd")).unwrap();
    web01.comes_to("pre-reboot", "unsafe-path");
    assert_eq!(holds(&bed), "no holds\n");
    std::fs::remove_dir(web01.node.root.join("etc/motd")).unwrap();
    web01.comes_to("pre-reboot", "");
}

/// On a socket that only root may open.
#[test]
fn a_socket_of_root_serves_too() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let socket = node.root.join("run/fl.sock");
    let settings = node.text("etc/converger/agent.toml");
    let listen = format!("[fleetlock]\nlisten = \"{}\"\n\n[sandbox]", socket.display());
    node.put("etc/converger/agent.toml", &settings.replace("[sandbox]", &listen));
    // One that was left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut served = Served { node, port: 0, agent: None };
    let mut command = converger();
    command.arg("agent").arg("--root").arg(&served.node.root);
    command.arg("--settings").arg(served.node.root.join("etc/converger/agent.toml"));
    served.agent = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "fleet-lock-protocol: true", "--unix-socket"]);
    curl.arg(&socket).args(["-d", r#"{"client_params":{"group":"default","id":"web01"}}"#]);
    let output = curl.arg("http://localhost/v1/steady-state").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "200");
}

#[test]
fn an_address_that_is_taken_is_said() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = node.text("etc/converger/agent.toml");
    let listen = format!("[fleetlock]\nlisten = \"{}\"\n\n[sandbox]", taken.local_addr().unwrap());
    node.put("etc/converger/agent.toml", &settings.replace("[sandbox]", &listen));
    node.agent(&[]).exits(2).says(&["error[settings]", "FleetLock cannot listen on 127.0.0.1:", "in use"]);
    node.once().exits(0);
}

// ---- the protocol ----

const BODY: &str = r#"{"client_params":{"group":"default","id":"c988d2509fdf5cdcbed39037c56406fb"}}"#;

fn endpoint() -> Endpoint {
    Endpoint {
        hosts: Some(Endpoint::hosts_of("127.0.0.1:9292".parse().unwrap())),
        ids: vec!["c988d2509fdf5cdcbed39037c56406fb".to_owned(), "web01".to_owned()],
    }
}

/// curl's own bytes.
fn request(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:9292\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\
         fleet-lock-protocol: true\r\nContent-Length: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_request_is_read_however_it_is_cut() {
    for (path, call) in [("/v1/pre-reboot", Call::PreReboot), ("/v1/steady-state", Call::SteadyState)] {
        let whole = request(path, BODY);
        for end in 0..whole.len() {
            assert_eq!(read(&whole.as_bytes()[..end], &endpoint()), Ok(None), "{end}");
        }
        assert_eq!(read(whole.as_bytes(), &endpoint()), Ok(Some(call)));
        assert_eq!(read(format!("{whole}GET / HTTP/1.1").as_bytes(), &endpoint()), Ok(Some(call)));
    }
}

/// A page in a browser that was made to ask this machine (DNS rebinding) names another host, and cannot send the header.
#[test]
fn what_is_not_the_protocol_is_refused_before_anybody_is_asked() {
    let good = request("/v1/pre-reboot", BODY);
    let edit = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let body = |body: &str| request("/v1/pre-reboot", body);
    let cases = [
        (404, edit("/v1/pre-reboot", "/v1/pre-reboot/")),
        (404, edit("/v1/pre-reboot", "/v2/pre-reboot")),
        (404, edit("/v1/pre-reboot", "http://127.0.0.1:9292/v1/pre-reboot")),
        (405, edit("POST", "GET")),
        (405, edit("POST", "PUT")),
        (403, edit("Host: 127.0.0.1:9292", "Host: rebound.example.com:9292")),
        (403, edit("Host: 127.0.0.1:9292", "Host: 127.0.0.1")),
        (403, edit("Host: 127.0.0.1:9292\r\n", "")),
        (400, edit("Host:", "Host: localhost:9292\r\nHost:")),
        (400, edit("fleet-lock-protocol: true\r\n", "")),
        (400, edit("fleet-lock-protocol: true", "fleet-lock-protocol: false")),
        (400, edit("Content-Length:", "Content-Length: 1\r\nContent-Length:")),
        (411, edit("Content-Length:", "Transfer-Encoding: chunked\r\nContent-Length:")),
        (411, edit("Content-Length:", "X-Length:")),
        (411, edit("Content-Length: ", "Content-Length: +")),
        (413, edit("Content-Length: ", "Content-Length: 99999")),
        (413, edit("Content-Length: ", "Content-Length: 99999999999999999999999")),
        (431, edit("curl", &"c".repeat(REQUEST_BYTES_MAX)).split("fleet-lock").next().unwrap().to_owned()),
        (400, edit("Accept", &"A: b\r\n".repeat(40))),
        (400, "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned()),
        (400, body("")),
        (400, body("{}")),
        (400, body("[]")),
        (400, body(r#"{"client_params":{"id":"web01"}}"#)),
        (400, body(r#"{"client_params":{"id":"web01","group":""}}"#)),
        (400, body(r#"{"client_params":{"id":"web01","group":"a b"}}"#)),
        (400, body(r#"{"client_params":{"id":7,"group":"a"}}"#)),
        (403, body(r#"{"client_params":{"id":"","group":"a"}}"#)),
        (403, body(r#"{"client_params":{"id":"web02","group":"a"}}"#)),
        (403, body(r#"{"client_params":{"id":"WEB01","group":"a"}}"#)),
    ];
    for (status, asked) in cases {
        let refusal = read(asked.as_bytes(), &endpoint()).expect_err(&asked);
        assert_eq!((refusal.status, refusal.kind), (status, "fleetlock-request"), "{asked}\n{refusal:?}");
        assert!(!refusal.value.is_empty());
    }
    for host in ["localhost:9292", "LOCALHOST:9292"] {
        assert!(read(edit("127.0.0.1:9292", host).as_bytes(), &endpoint()).is_ok());
    }
    assert_eq!(Endpoint::hosts_of("[::1]:80".parse().unwrap()), ["[::1]:80", "localhost:80", "[::1]", "localhost"]);
    // More keys are for a newer client to say.
    let more = body(r#"{"client_params":{"id":"web01","group":"a.b-1","v":2},"x":{}}"#);
    assert_eq!(read(more.as_bytes(), &endpoint()), Ok(Some(Call::PreReboot)));
}

/// Every answer is one that the protocol's page describes: 200, or an error with `kind` and `value`; the kinds are few.
#[test]
fn answers_are_what_the_protocol_says() {
    assert!(written(&Ok(())).starts_with(b"HTTP/1.1 200 OK\r\n"));
    for reason in converger::reason::ALL {
        let text = String::from_utf8(written(&Err(Refusal::of(*reason, "why: \"it\"\r\nis")))).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        assert!(["409", "500", "503"].contains(&status), "{text}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{text}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body, serde_json::json!({ "kind": reason.id, "value": "why: \"it\"\r\nis" }));
    }
}

/// The id that zincati sends, by systemd's own tool.
#[test]
fn zincati_s_id_is_systemd_s() {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap();
    let app = "--app-specific=de35106b6ec24688b63afddaa156679b";
    let output = Command::new("systemd-id128").args(["machine-id", app]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(zincati_id(&machine).unwrap(), String::from_utf8(output.stdout).unwrap().trim());
    for bad in ["", "uninitialized", "c988d250", "c988d2509fdf5cdcbed39037c56406fbff"] {
        assert_eq!(zincati_id(bad), None);
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..400_usize) {
        let _ = read(&bytes, &endpoint());
        let mut spoiled = request("/v1/pre-reboot", BODY).into_bytes();
        let at = at.min(spoiled.len());
        spoiled.splice(at..(at + bytes.len().min(8)).min(spoiled.len()), bytes);
        if let Ok(None) = read(&spoiled, &endpoint()) {
            prop_assert!(spoiled.len() <= REQUEST_BYTES_MAX);
        }
    }
}

/// A client that says nothing, or half of it, keeps nobody else from asking.
#[test]
fn slow_clients_are_not_waited_for() {
    let bed = Bed::new();
    let served = Served::new(&bed, "web01");
    let mut slow: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
            stream.write_all(b"POST /v1/pre-reboot HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    assert_eq!(served.asks("steady-state"), "");
    let mut said = String::new();
    slow[0].read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    // A request that does not end has an end.
    let mut endless = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
    let _ = endless.write_all(&b"POST /v1/pre-reboot HTTP/1.1\r\nA: ".repeat(2000));
    let mut said = Vec::new();
    let _ = endless.read_to_end(&mut said);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(served.asks("steady-state"), "");
}
