//! A canary in every place where a secret can be configured, looked for in every output (f81).

use std::path::Path;
use std::process::Output;

use crate::support::world::{MEDIA_TOKEN, TOKEN, tollgate};
use crate::support::{Access, Call, Org, Script, Setup, World, raw, run, until};

/// Where each secret is configured, and what it is. The operator's token and the backend's come
/// from the environment of every test.
const FROM_FILE: &str = "canary-key-in-the-org-file-0001";
const FROM_ENV: &str = "canary-key-from-the-environment-02";
const FROM_SECRET_FILE: &str = "canary-key-from-a-secret-file-0003";
const BACKEND_FILE: &str = "canary-credential-from-a-file-0004";
const TOKEN_FILE: &str = "canary-operator-token-in-a-file-05";
const URL: &str = "canary-password-in-a-url-0000006";
const SHOWN: &str = "canary-key-that-nobody-has-0000007";

const REPORTS: &str = "canary-secret-of-reports-in-a-file8";

const CANARIES: [&str; 10] = [
    FROM_FILE,
    FROM_ENV,
    FROM_SECRET_FILE,
    BACKEND_FILE,
    TOKEN_FILE,
    URL,
    SHOWN,
    REPORTS,
    TOKEN,
    MEDIA_TOKEN,
];

/// No output has a canary, or the end of one.
#[track_caller]
fn clean(what: &str, bytes: &[u8]) {
    for canary in CANARIES {
        let (_, end) = canary.split_at(canary.len() / 2);
        for part in [canary, end] {
            let found = bytes.windows(part.len()).any(|window| window == part.as_bytes());
            assert!(!found, "{canary} is in {what}: {}", String::from_utf8_lossy(bytes));
        }
    }
}

#[track_caller]
fn clean_output(what: &str, output: &Output) {
    clean(what, &output.stdout);
    clean(what, &output.stderr);
}

fn files(dir: &Path, see: &mut dyn FnMut(&Path, &[u8])) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, see);
        } else {
            clean("a file's name", path.to_string_lossy().as_bytes());
            see(&path, &std::fs::read(&path).unwrap());
        }
    }
}

fn org() -> Org {
    let key = |id: &str, secret: &str| {
        format!("[[key]]\nid = \"{id}\"\nkind = \"service\"\nacts_for = \"*\"\n{secret}\n")
    };
    Org::new()
        .user("alice", "5", Access::None)
        .extra(&key("from-file", &format!("secret = \"{FROM_FILE}\"")))
}

#[test]
fn f81_a_canary_in_every_place_of_a_secret_is_in_no_output() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("credential"), format!("{BACKEND_FILE}\n")).unwrap();
        std::fs::write(path("key"), format!("{FROM_SECRET_FILE}\n")).unwrap();
        std::fs::write(path("reports"), format!("{REPORTS}\n")).unwrap();
        let jobs = format!(
            "[[route]]\npath = \"/v1/videos\"\nupstream = \"media\"\nfeature = \"image\"\n[route.job]\n\
             id = \"/id\"\nstatus_path = \"/v1/videos/{{job}}\"\nstatus = \"/status\"\n\
             succeeded = [\"completed\"]\nfailed = [\"failed\"]\nreport = {{ file = {:?} }}\n",
            path("reports").display().to_string()
        );
        let setup = Setup {
            limits: jobs,
            environment: vec![
                ("RUST_LOG".to_owned(), "trace".to_owned()),
                ("CANARY_KEY".to_owned(), FROM_ENV.to_owned()),
            ],
            ..Setup::default()
        };
        let world = World::with(setup, &org());
        // Keys whose secrets are read by the command that applies the file.
        let more = format!(
            "[[key]]\nid = \"env\"\nkind = \"service\"\nacts_for = \"*\"\n\
             secret_env = \"CANARY_KEY\"\n[[key]]\nid = \"path\"\nkind = \"service\"\n\
             acts_for = \"*\"\nsecret_file = {:?}\n",
            path("key").display().to_string()
        );
        let more = org().extra(&more).toml();
        std::fs::write(path("keys.toml"), more).unwrap();
        let file = path("keys.toml").display().to_string();
        for arguments in [["apply", "--dry-run", &file], ["apply", &file, "--dry-run"]] {
            clean_output("a dry run", &world.command_with(&arguments, ("CANARY_KEY", FROM_ENV)));
        }
        let applied = world.command_with(&["apply", &file], ("CANARY_KEY", FROM_ENV));
        assert!(applied.status.success(), "{applied:?}");
        clean_output("apply", &applied);
        // The credential of the backend from a file, while it runs.
        world.edit(|text| {
            let file = format!("file = \"{}\" }}", path("credential").display());
            text.replace("env = \"MEDIA_TOKEN\" }", &file)
                .replace("[admin]", "[log]\nlevel = \"trace\"\naccess = true\n[admin]")
        });
        world.signal("HUP");
        world.logged(&["read again", "upstream"]).await;

        // Each key works, so each secret is really configured.
        for key in [FROM_FILE, FROM_ENV, FROM_SECRET_FILE] {
            let call = Call::post("/v1/images", "{}").key(key).header("tollgate-user", "alice");
            let answer = world.send(&call).await;
            answer.is(200);
            clean("an answer's headers", format!("{:?}", answer.headers).as_bytes());
            clean("an answer", &answer.body);
        }
        let shown = world.backend.last();
        assert_eq!(shown.header("authorization"), Some(&*format!("Bearer {BACKEND_FILE}")));
        // Everything that goes wrong.
        let wrong = [
            Call::post("/v1/images", "{}").key(SHOWN).header("tollgate-user", "alice"),
            Call::post("/v1/images", "{}").key(FROM_FILE),
            Call::post("/v1/images", "{}").key(FROM_FILE).header("tollgate-user", "nobody"),
            Call::post("/v1/images", "{").key(FROM_FILE).header("tollgate-user", "alice"),
            Call::post("/v1/dead", "{}").key(FROM_FILE).header("tollgate-user", "alice"),
            Call::post("/v1/nothing", "{}").key(FROM_FILE).header("tollgate-user", "alice"),
            Call::post("/v1/images", "{\"n\":900}").key(FROM_FILE).header("tollgate-user", "alice"),
            Call::post("/v1/images", "{}").key(FROM_FILE).key(SHOWN),
            Call::post("/v1/images", "{}").header("tollgate-key", SHOWN),
            Call::post("/v1/images", "{}").header("authorization", SHOWN),
            Call::post("/.tollgate/v1/jobs/x", "{}").key(SHOWN),
            Call::post("/v1/images", "{}")
                .key(FROM_FILE)
                .header("tollgate-user", "alice")
                .script(&Script { hang_up: true, ..Script::default() }),
        ];
        // One that may report is told that there is nothing to report of.
        let report = Call::post("/.tollgate/v1/jobs/x", "{}").key(REPORTS);
        world.send(&report).await.refused(404, "unknown_route");
        for call in wrong {
            let answer = world.send(&call).await;
            assert!(answer.status >= 400, "{answer:?}");
            clean("a refusal's headers", format!("{:?}", answer.headers).as_bytes());
            clean("a refusal", &answer.body);
        }
        let broken = format!("GET / HTTP/1.1\r\nauthorization: Bearer {SHOWN}\x01\r\n\r\n");
        clean("the answer to no HTTP", raw(world.gateway(), broken.as_bytes()).await.as_bytes());
        // What administrators and operators see.
        for path in [
            "/v1/orgs/acme/users",
            "/v1/orgs/acme/pool",
            "/v1/orgs/acme/keys",
            "/v1/orgs/acme/audit",
            "/v1/orgs/acme/users/alice/balance",
            "/openapi.json",
        ] {
            clean(path, world.admin_as(path, Some(TOKEN)).1.as_bytes());
            clean(path, world.admin_as(path, Some(SHOWN)).1.as_bytes());
            clean(path, world.admin_as(path, None).1.as_bytes());
        }
        for path in ["/metrics", "/readyz?verbose", "/livez", "/startupz?verbose"] {
            clean(path, world.ops(path).1.as_bytes());
        }
        let archived = || (world.metric("tollgate_ledger_lag_records", &[]) == 0.0).then_some(());
        until("it is archived", archived).await;
        // What is on the disk, and so in every backup.
        let mut count = 0;
        files(&world.data(), &mut |path, bytes| {
            count += 1;
            clean(&path.display().to_string(), bytes);
        });
        assert!(count > 3, "the data dir was not found");
        let log = world.log();
        assert!(
            log.iter().any(|line| line.contains(" TRACE ") || line.contains("DEBUG")),
            "nothing is traced"
        );
        clean("the log", log.join("\n").as_bytes());
    });
}

impl World {
    fn command_with(&self, arguments: &[&str], variable: (&str, &str)) -> Output {
        let admin = self.admin_url();
        let mut command = tollgate();
        command.args(arguments).args(["--admin", &admin]).env(variable.0, variable.1);
        command.output().unwrap()
    }
}

#[test]
fn f81_no_command_shows_a_secret_however_wrong_its_files_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("token"), TOKEN_FILE).unwrap();
    std::fs::write(path("bad-token"), format!("{TOKEN_FILE}\n\x01")).unwrap();
    let config = |text: &str| {
        std::fs::write(path("t.toml"), text).unwrap();
        path("t.toml")
    };
    let data = format!("[data]\ndir = {:?}\n", path("data").display().to_string());
    let credential = |more: &str| {
        format!("{data}[[upstream]]\nname = \"m\"\nurls = [\"http://127.0.0.1:1\"]\n{more}\n")
    };
    for text in [
        format!("{data}[admin]\ntoken_file = {:?}\n", path("bad-token").display().to_string()),
        format!("{data}[admin]\ntoken = \"{TOKEN_FILE}\"\n"),
        format!("{data}[books]\nurl = \"redis://u:{URL}@127.0.0.1\"\n"),
        format!("{data}[directory]\nurl = \"postgres://u:{URL}@127.0.0.1/t\"\n"),
        credential(&format!("credential = {{ env = \"{BACKEND_FILE}\" }}")),
        credential(&format!("credential = {{ file = [\"{BACKEND_FILE}\"] }}")),
        credential(&format!("credential = \"{BACKEND_FILE}\"")),
        credential(&format!("credential = {{ secret = \"{BACKEND_FILE}\"")),
        format!("{data}[traces]\nendpoint = \"http://u:{URL}@127.0.0.1:4318\"\n"),
        format!("{data}[traces]\ncredential = \"{BACKEND_FILE}\"\n"),
        format!("{data}[traces]\ncredential = {{ scheme = \"Bearer\", value = \"{URL}\" }}\n"),
        format!("{data}[[upstream]]\nname = \"m\"\nurls = [\"http://u:{URL}@127.0.0.1:1\"]\n"),
    ] {
        let file = config(&text);
        for command in [&["check"][..], &["check", "--print"], &["ledger", "verify"]] {
            let output = tollgate().args(command).arg("-c").arg(&file).output().unwrap();
            // A variable's name is no secret, so that text is one that `check` may show.
            if !text.contains("env = ") {
                clean_output(&format!("{command:?} of\n{text}"), &output);
            }
        }
    }
    for command in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["apply", "--help"],
        &["--version"],
        &["apply", "/nowhere", "--admin", "http://127.0.0.1:2"],
        &["serve", "-c", "/nowhere"],
    ] {
        let output = tollgate().args(command).output().unwrap();
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{command:?}");
        clean_output(&format!("{command:?}"), &output);
    }
    // An org file with the secret where none belongs.
    for text in [
        format!("[org]\nid = \"acme\"\n[[key]]\nid = \"k\"\nkind = \"{FROM_FILE}\"\n"),
        format!(
            "[org]\nid = \"acme\"\n[[key]]\nid = \"k\"\nkind = \"service\"\nsecret = [\"{FROM_FILE}\"]\n"
        ),
        format!(
            "[org]\nid = \"acme\"\n[[key]]\nid = \"k\"\nkind = \"service\"\nsecret = \"{FROM_FILE}\nx"
        ),
    ] {
        std::fs::write(path("org.toml"), &text).unwrap();
        let arguments = ["apply", "--admin", "http://127.0.0.1:2"];
        let output = tollgate().args(arguments).arg(path("org.toml")).output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        clean_output(&text, &output);
    }
}
