//! A real sshd on loopback, which lets in the keys in `authorized`, a file beside the forge; stopped by pid.

#![allow(clippy::disallowed_methods)] // starts and stops a server

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::forge::Forge;

/// A real sshd with its own key, for this user only.
pub struct Sshd {
    child: Child,
    pub port: u16,
}

impl Sshd {
    pub fn serve(forge: &Forge) -> Self {
        forge.keygen("host", &["-t", "ed25519"]);
        let at = |name: &str| forge.dir.path().join(name);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n",
            forge.key("host").display(),
            at("authorized").display()
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        let mut child = sshd.args(["-D", "-e", "-f"]).arg(at("sshd_config")).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, port }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
