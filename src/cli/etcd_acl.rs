//! `converger etcd-acl`: who may do what in etcd, shown or brought about.
//!
//! Never: rights taken before those that replace them are given; never: authentication turned on by the way.

use super::access::Access;
use super::{Done, Failure, say, say_json};
use crate::disk;
use crate::fleet::Fleet;
use crate::lock::etcd::{Auth, Server};
use crate::lock::rights::{self, Change, People, ROOT, Rights};
use crate::lock::session;
use crate::lock::store::StoreError;
use crate::plan::show::table;
use crate::reason::{Exit, chain};
use crate::secrets::tls;
use crate::settings::Store;

/// Show or set who may do what in etcd: users, roles and grants of an environment
///
/// A user is the CN of a certificate. Every node may read everything of its environment, and write its own keys and holds
/// only. Shown from the topology of the repository without asking etcd, unless told to apply. Applied twice, the second
/// time changes nothing. With `--keep` nothing is taken away: run it so before a commit that moves members is merged, and
/// without it when every node has applied that commit.
#[derive(clap::Args)]
pub struct Args {
    /// A user who may do everything in the environment (may be repeated)
    #[arg(long, value_name = "NAME")]
    operator: Vec<String>,
    /// A user who may read everything and wake the nodes (may be repeated)
    #[arg(long, value_name = "NAME")]
    serve: Vec<String>,
    /// As JSON, for scripts
    #[arg(long, conflicts_with_all = ["commands", "apply", "enable_auth"])]
    json: bool,
    /// As lines for etcdctl
    #[arg(long, conflicts_with_all = ["apply", "enable_auth"])]
    commands: bool,
    /// Bring it about, with the access of the client settings; says what it changed
    #[arg(long)]
    apply: bool,
    /// With --apply: add what is missing and take nothing away
    #[arg(long, requires = "apply")]
    keep: bool,
    /// Turn etcd's authentication on, for all its users; refused if your certificate could change nothing afterwards
    #[arg(long)]
    enable_auth: bool,
}

pub fn run(args: &Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let fleet = access.load(&tree)?.fleet;
    let people = People { operators: args.operator.clone(), wakers: args.serve.clone() };
    let wanted = rights::wanted(&fleet, &people).map_err(|error| Failure::usage(error.to_string()))?;
    if args.json {
        say_json(&as_json(&wanted));
    } else if args.commands {
        let changes = rights::missing(&Rights::default(), &wanted);
        changes.iter().for_each(|change| say(format!("{}\n", line(change))));
    } else if args.apply || args.enable_auth {
        let (auth, me) = open(access)?;
        if args.apply {
            apply(args, &auth, &fleet, &wanted)?;
        }
        if args.enable_auth {
            enable(&auth, &me)?;
        }
    } else {
        say(as_table(&wanted));
        say(
            "\nNothing was asked or changed: --apply does. It counts once etcd's authentication is on (--enable-auth).\n",
        );
    }
    Ok(Exit::Done)
}

fn apply(args: &Args, auth: &Auth, fleet: &Fleet, wanted: &Rights) -> Result<(), Failure> {
    let prefix = rights::prefix(&fleet.name, fleet.environment.name.as_str());
    let live = auth.live(&prefix).map_err(failed)?;
    let superfluous = rights::superfluous(&live, wanted, &prefix);
    let kept = if args.keep { superfluous.len() } else { 0 };
    let changes: Vec<Change> =
        rights::missing(&live, wanted).into_iter().chain(superfluous.into_iter().filter(|_| !args.keep)).collect();
    for change in &changes {
        auth.perform(change).map_err(failed)?;
        say(format!("{}\n", line(change)));
    }
    if changes.is_empty() {
        say("nothing to change\n");
    }
    if kept > 0 {
        say(format!("{kept} that are not wanted any more were kept\n"));
    }
    Ok(())
}

/// Whoever asks must be able to go on afterwards.
fn enable(auth: &Auth, me: &str) -> Result<(), Failure> {
    if auth.answers_strangers().map_err(failed)? {
        return Err(Failure::usage(
            "etcd answers clients without a certificate, so it would know nobody once authentication is on; \
             start its members with --client-cert-auth and --trusted-ca-file first",
        ));
    }
    // No prefix: of the roles themselves nothing is asked.
    let live = auth.live("/").map_err(failed)?;
    let may = me == ROOT || live.users.get(me).is_some_and(|roles| roles.contains(ROOT));
    if !may {
        return Err(Failure::usage(format!(
            "your certificate says {me}, who could change no rights once authentication is on; \
             use one with the CN root, or first: etcdctl user add {me} --no-password; etcdctl user grant-role {me} root"
        )));
    }
    auth.enable().map_err(failed)?;
    say("authentication is on: a certificate without a user can do nothing\n");
    Ok(())
}

fn open(access: &Access) -> Result<(Auth, String), Failure> {
    let (endpoints, ca, cert, key) = match access.client()?.store {
        Some(Store::Etcd { endpoints, ca, cert, key }) => (endpoints, ca, cert, key),
        Some(Store::Local { .. }) => {
            return Err(Failure::usage("the store is a file on this machine: it has no users"));
        }
        None => {
            return Err(Failure::usage("no store is named: add a [store] table to ~/.config/converger/client.toml"));
        }
    };
    let pem = disk::read_bounded(&cert, CERTIFICATE_BYTES_MAX).map_err(|error| Failure::usage(chain(&error)))?;
    let me = pem.and_then(|pem| tls::common_name(&pem));
    let me = me.ok_or_else(|| Failure::usage(format!("{}: no certificate with a CN", cert.display())))?;
    let auth = Auth::open(Server { endpoints, ca: Some(ca), cert: Some(cert), key: Some(key) });
    Ok((auth.map_err(failed)?, me))
}

const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;

fn failed(error: StoreError) -> Failure {
    Failure::of(session::because_of(&error).reason(), chain(&error))
}

fn line(change: &Change) -> String {
    let words: Vec<String> = change.etcdctl().into_iter().map(quoted).collect();
    format!("etcdctl {}", words.join(" "))
}

/// For a shell, where it is needed.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@./_-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn as_table(rights: &Rights) -> String {
    let users_of = |role: &String| -> String {
        let users = rights.users.iter().filter(|(_, roles)| roles.contains(role)).map(|(user, _)| user.as_str());
        users.collect::<Vec<_>>().join(" ")
    };
    let rows: Vec<[String; 4]> = rights
        .roles
        .iter()
        .flat_map(|(role, grants)| {
            grants.iter().enumerate().map(move |(at, (keys, access))| {
                let (role_shown, users) =
                    if at == 0 { (role.clone(), users_of(role)) } else { (String::new(), String::new()) };
                [role_shown, users, access.word().to_owned(), keys.from.clone()]
            })
        })
        .collect();
    table(&["role", "users", "access", "keys"].map(str::to_owned), &rows, "")
}

fn as_json(rights: &Rights) -> serde_json::Value {
    let roles = rights.roles.iter().map(|(role, grants)| {
        let grants = grants
            .iter()
            .map(|(keys, access)| serde_json::json!({ "access": access.word(), "from": keys.from, "to": keys.to }));
        (role.clone(), serde_json::Value::from(grants.collect::<Vec<_>>()))
    });
    serde_json::json!({ "users": rights.users, "roles": roles.collect::<serde_json::Map<_, _>>() })
}
