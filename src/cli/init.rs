//! `converger init`: a new fleet repository with a signed first commit.
//!
//! Never: writes into a folder that has something in it, leaves half of one behind, or makes a key.

use std::path::{Path, PathBuf};

use super::access::problems_failure;
use super::process::output;
use super::trust::{INTRODUCTION_SETTING, SIGNER_SETTING};
use super::{Done, Failure, say};
use crate::disk::{self, DiskError};
use crate::fleet::load;
use crate::git::Workspace;
use crate::plan::show::Paint;
use crate::reason::{Exit, chain};
use crate::template;

/// Make a fleet repository from the template, with you as its first root key, and sign the first commit
///
/// The commit that this prints is the introduction: it goes into every node's trust.toml, outside the repository.
#[derive(clap::Args)]
pub struct Args {
    /// A folder that does not exist yet, or is empty
    dir: PathBuf,
    /// Your SSH signing key (the private one, or its .pub when an agent or a security key holds it)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Who you are in trust/allowed_signers
    #[arg(long, value_name = "EMAIL", default_value = "founder@example.org")]
    principal: String,
    /// Fleet id. Default: the template's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub fn run(args: Args) -> Done {
    let made = make(&args)?;
    let Paint { bold, dim, off, .. } = Paint::COLOUR;
    let (dir, Made { fleet, files, commit, signer }) = (args.dir.display(), &made);
    say(format!(
        "{bold}{dir}{off}: fleet {fleet}, {files} files, signed by {}\n\n\
         Every node's /etc/converger/trust.toml begins with this {dim}(keep it outside the repository){off}:\n\n\
         fleet = \"{fleet}\"\n\
         ref = \"refs/heads/main\"\n\
         policy = \"standard\"\n\
         introduction = {{ commit = \"{commit}\", signer = \"{signer}\", seq = 1 }}\n\n\
         Next:\n\
         1. cd {dir}, make environments/production yours: nodes, `operators` in secrets.toml;\n     \
            delete secrets/*.age and public/, `converger secret generate`, `converger check`, commit.\n\
         2. Push it: git remote add origin URL && git push origin main\n\
         3. On each node, as root: converger enroll --node NAME --env production --remote URL --fleet {fleet} \\\n     \
            --introduction {commit} \\\n     \
            --signer {signer}\n\
         4. Merge what enroll prints. In this clone `converger trust verify` knows where the chain begins.\n",
        args.principal,
    ));
    Ok(Exit::Done)
}

struct Made {
    fleet: String,
    files: usize,
    commit: String,
    signer: String,
}

fn make(args: &Args) -> Result<Made, Failure> {
    let dir = &args.dir;
    if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::usage(format!("{} is not empty; name a new folder", dir.display())));
    }
    if args.principal.is_empty()
        || args.principal.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\,#*?!".contains(c))
    {
        return Err(Failure::usage(format!("{:?} is no principal; take an e-mail address", args.principal)));
    }
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if let Some(name) = args.name.as_ref().filter(|name| name.is_empty() || !plain(name)) {
        return Err(Failure::usage(format!("{name:?} is no fleet id; take lowercase letters, digits and dashes")));
    }
    let public = public_key(&args.key)?;
    let key = args.key.canonicalize().map_err(|error| Failure::usage(format!("{}: {error}", args.key.display())))?;

    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.exists() {
        disk::create_dirs(parent).map_err(failed)?;
    }
    // Beside its place, so that what fails leaves nothing there.
    let name = dir.file_name().ok_or_else(|| Failure::usage(format!("{} is no name of a folder", dir.display())))?;
    let fresh = parent.join(format!(".{}.new.{}", name.to_string_lossy(), std::process::id()));
    let made = disk::create_dirs(&fresh).map_err(failed).and_then(|()| fill(&fresh, args, &public, &key));
    let placed = made.and_then(|made| disk::install(&fresh, dir).map(|()| made).map_err(failed));
    if placed.is_err() {
        let _ = disk::remove(&fresh);
    }
    placed
}

fn fill(dir: &Path, args: &Args, public: &str, key: &Path) -> Result<Made, Failure> {
    let files = template::write_fleet_repository(dir).map_err(failed)?;
    let signers = format!("{} {public}\n", args.principal);
    disk::write_atomic(&dir.join("trust/allowed_signers"), signers.as_bytes(), 0o644).map_err(failed)?;
    let policy = format!(
        "#:schema ../schemas/policy.json\n\
         # Who may sign what. Principals are those of trust/allowed_signers; a key lives from the commit that adds it to\n\
         # the one that removes it. Changed only by commits that a root key signed.\n\
         [principals.\"{}\"]\nroles = [\"root\", \"deploy\"]\npaths = [\"**\"]\n\n[banned]\nkeys = []\n",
        args.principal
    );
    disk::write_atomic(&dir.join("trust/policy.toml"), policy.as_bytes(), 0o644).map_err(failed)?;
    let fleet = rename(dir, args.name.as_deref())?;

    let git = |args: &[&str]| output(dir, "git", args);
    git(&["init", "--quiet", "--initial-branch", "main"])?;
    let key = key.display().to_string();
    let local = [
        ("gpg.format", "ssh"),
        ("user.signingkey", key.as_str()),
        ("commit.gpgsign", "true"),
        ("user.name", args.principal.split('@').next().unwrap_or("founder")),
        ("user.email", args.principal.as_str()),
        ("gpg.ssh.allowedSignersFile", "trust/allowed_signers"),
    ];
    for (name, value) in local {
        git(&["config", name, value])?;
    }
    git(&["add", "--all"])?;
    let tree = Workspace::open(dir).and_then(|workspace| workspace.tree_of_worktree());
    let tree = std::sync::Arc::new(tree.map_err(|error| Failure::new(Exit::Repository, chain(&error)))?);
    load::load(&tree, None).map_err(|problems| problems_failure(&problems, &tree))?;
    git(&["commit", "--quiet", "--message", "fleet: the first commit, signed: the introduction of every node"])?;
    let summary = Workspace::open(dir).and_then(|workspace| workspace.summary("HEAD"));
    let summary = summary.map_err(|error| Failure::new(Exit::Internal, chain(&error)))?;
    let signer = summary.signer.ok_or_else(|| Failure::new(Exit::Trust, "the first commit came out unsigned"))?;
    let commit = summary.id.to_string();
    git(&["config", INTRODUCTION_SETTING, &commit])?;
    git(&["config", SIGNER_SETTING, &signer])?;
    Ok(Made { fleet, files, commit, signer })
}

fn failed(error: DiskError) -> Failure {
    Failure::usage(chain(&error))
}

/// `ssh-ed25519 AAAA…` without its comment.
fn public_key(key: &Path) -> Result<String, Failure> {
    let public = if key.extension().is_some_and(|end| end == "pub") {
        key.to_owned()
    } else {
        let mut name = key.as_os_str().to_owned();
        name.push(".pub");
        PathBuf::from(name)
    };
    let missing =
        || Failure::usage(format!("{}: no such public key; make one with `ssh-keygen -t ed25519`", public.display()));
    let bytes =
        disk::read_bounded(&public, 1 << 16).map_err(|error| Failure::usage(chain(&error)))?.ok_or_else(missing)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let key = ssh_key::PublicKey::from_openssh(text.trim());
    let mut key = key.map_err(|error| Failure::usage(format!("{}: {error}", public.display())))?;
    key.set_comment("");
    let line = key.to_openssh().map_err(|error| Failure::usage(format!("{}: {error}", public.display())))?;
    Ok(line.trim().to_owned())
}

/// Sets the fleet's name, comments kept. The name that holds in the end.
fn rename(dir: &Path, name: Option<&str>) -> Result<String, Failure> {
    let path = dir.join("fleet.toml");
    let bytes = disk::read_bounded(&path, 1 << 20).map_err(failed)?.unwrap_or_default();
    let mut document: toml_edit::DocumentMut = String::from_utf8_lossy(&bytes)
        .parse()
        .map_err(|error: toml_edit::TomlError| Failure::new(Exit::Internal, error.to_string()))?;
    if let Some(name) = name {
        document["name"] = toml_edit::value(name);
        disk::write_atomic(&path, document.to_string().as_bytes(), 0o644).map_err(failed)?;
    }
    Ok(document["name"].as_str().unwrap_or_default().to_owned())
}
