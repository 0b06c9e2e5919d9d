use proptest::prelude::*;

use super::*;

const KIND: &str = "multipart/form-data; boundary=b-1";

/// A form of one part, with this head and content.
fn one(head: &str, content: &str) -> String {
    format!("--b-1\r\n{head}\r\n\r\n{content}\r\n--b-1--\r\n")
}

fn field(name: &str, content: &str) -> String {
    one(&format!("Content-Disposition: form-data; name=\"{name}\""), content)
}

#[test]
fn what_clients_send_is_read() {
    let body = "--b-1\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na\r\nb\n\r\n\
                --b-1\r\ncontent-type: image/png\r\ncontent-length: 3\r\n\
                content-disposition:form-data;name=image;  filename=\"a b=1.png\"\r\n\r\n\0\r\n\r\n\
                --b-1\r\nContent-Disposition: form-data; name=\"n\"\r\n\
                Content-Type: text/plain; charset=UTF-8\r\n\r\n2\r\n--b-1--";
    for end in ["", "\r\n"] {
        let body = [body, end].concat();
        let form = Form::read(KIND, body.as_bytes()).unwrap();
        let names: Vec<_> = form.parts().iter().map(|part| (part.name, part.filename)).collect();
        assert_eq!(names, [("prompt", None), ("image", Some("a b=1.png")), ("n", None)]);
        assert_eq!(form.parts()[0].content, b"a\r\nb\n");
        assert_eq!(form.text("n").unwrap(), Some("2"));
        assert_eq!(form.text("size").unwrap(), None);
        assert_eq!(form.files("image").unwrap(), Some(Files { count: 1, bytes: 3 }));
        assert_eq!(form.files("mask").unwrap(), None);
    }
    assert!(Form::read(KIND, b"--b-1--\r\n").unwrap().parts().is_empty());
}

#[test]
fn f70_a_type_that_readers_could_read_in_two_ways_is_refused() {
    let body = field("n", "2");
    let accepted = |kind: &str| Form::read(kind, body.as_bytes()).is_ok();
    for kind in [
        KIND,
        "Multipart/Form-Data;BOUNDARY=\"b-1\"",
        "multipart/form-data ; charset=\"utf-8\"; boundary=b-1",
    ] {
        assert!(accepted(kind), "{kind}");
    }
    for kind in [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"\"",
        "multipart/form-data; boundary=b-1; boundary=c",
        "multipart/form-data; boundary=c; boundary=b-1",
        "multipart/form-data; boundary*=b-1",
        "multipart/form-data; boundary=\"b-1",
        "multipart/form-data; boundary=\"b-1\"x",
        "multipart/form-data; boundary=\"b\\-1\"",
        "multipart/form-data; boundary=b-1;",
        "multipart/form-data; boundary=b-1, multipart/form-data; boundary=c",
        "multipart/form-data; boundary=b-1; charset=utf-16",
        "multipart/form-data; boundary=b-1; charset=latin1",
        "multipart/form-data; boundary=b-1; x=y",
        "multipart/mixed; boundary=b-1",
        "multipart/related; boundary=b-1",
        "application/x-www-form-urlencoded; boundary=b-1",
    ] {
        assert!(!accepted(kind), "{kind}");
    }
    for (boundary, fine) in [("b".repeat(70), true), ("b".repeat(71), false), ("b c".into(), false)]
    {
        let kind = format!("multipart/form-data; boundary=\"{boundary}\"");
        let body = format!("--{boundary}--\r\n");
        assert_eq!(Form::read(&kind, body.as_bytes()).is_ok(), fine, "{boundary}");
    }
}

#[test]
fn f70_boundaries_that_some_reader_sees_and_another_does_not_are_refused() {
    let named = "Content-Disposition: form-data; name=\"n\"";
    for body in [
        String::new(),
        "--b-1".into(),
        "--b-1\r\n".into(),
        format!("--b-1\r\n{named}\r\n\r\n2"),
        format!("--b-1\r\n{named}\r\n\r\n2\r\n--b-1"),
        format!("--b-1\r\n{named}\r\n\r\n2\r\n--b-1-"),
        format!("--b-1\r\n{named}\r\n\r\n2\r\n--b-1\r\n"),
        // Before it, behind it, and lines that end otherwise.
        format!("\r\n{}", field("n", "2")),
        format!("x\r\n{}", field("n", "2")),
        format!("{}x", field("n", "2")),
        format!("{}{}", field("n", "2"), field("n", "3")),
        format!("{}\r\n", field("n", "2")),
        field("n", "2").replace("\r\n", "\n"),
        field("n", "2").replacen("\r\n", "\n", 1),
        format!("--b-1\r\n{named}\r\n\r\n2\n--b-1--\r\n"),
        format!("--b-1\r\n{named}\r\n\r\n2\r--b-1--\r\n"),
        format!("--b-1\r\n{named}\r\n\r\n--b-1--\r\n"),
        // In a line with something else.
        field("n", "2--b-1"),
        field("n", "2\r\n --b-1"),
        field("n", "2\r\n--b-1x"),
        field("n", "2\r\n--b-1 "),
        field("n", "2\n--b-1--\n3"),
        field("n", "2\r\n--b-1 \r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n3"),
        field("n", "2\r\n--b-1-- "),
    ] {
        assert!(Form::read(KIND, body.as_bytes()).is_err(), "{body:?}");
    }
    // What only looks like one is content.
    for content in ["--b", "\r\n--b-", "\r\n--B-1", "--", "-b-1", "\r\n\r\n"] {
        let body = field("n", content);
        let form = Form::read(KIND, body.as_bytes()).unwrap();
        assert_eq!(form.parts()[0].content, content.as_bytes());
    }
    let part = "--b-1\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n\r\n";
    assert!(Form::read(KIND, format!("{}--b-1--", part.repeat(256)).as_bytes()).is_ok());
    assert!(Form::read(KIND, format!("{}--b-1--", part.repeat(257)).as_bytes()).is_err());
}

#[test]
fn f70_a_head_that_readers_could_read_in_two_ways_is_refused() {
    let named = "Content-Disposition: form-data; name=\"n\"";
    for head in [
        "",
        "Content-Type: text/plain",
        "Content-Disposition: form-data",
        "Content-Disposition: form-data; name=\"\"",
        "Content-Disposition: form-data; name=",
        "Content-Disposition: form-data; name",
        "Content-Disposition: form-data; filename=\"n\"",
        "Content-Disposition: form-data; filename=\"name=n\"; name=\"x\"",
        "Content-Disposition: attachment; name=\"n\"",
        "Content-Disposition: form-data; name=\"n\"; name=\"x\"",
        "Content-Disposition: form-data; name=\"n\"; filename=\"a\"; filename=\"b\"",
        "Content-Disposition: form-data; name=\"n\"; filename*=utf-8''a",
        "Content-Disposition: form-data; name=\"n\"; filename=\"a\"; filename*=utf-8''b",
        "Content-Disposition: form-data; name*=utf-8''n",
        "Content-Disposition: form-data; name=\"n\"; size=3",
        "Content-Disposition: form-data; name=\"n",
        "Content-Disposition: form-data; name=\"n\"x",
        "Content-Disposition: form-data; name='n'",
        "Content-Disposition: form-data; name=\"a\\\"; name=\"n\"",
        "Content-Disposition: form-data; name=\"a;name=n\"",
        "Content-Disposition: form-data; name=\"=?utf-8?q?n?=\"",
        "Content-Disposition: form-data; name=\"n\";",
        "Content-Disposition: form-data; name = \"n\"",
        "Content-Disposition : form-data; name=\"n\"",
        " Content-Disposition: form-data; name=\"n\"",
        "Content-Disposition: form-data;\r\n name=\"n\"",
        "Content-Disposition: form-data; name=\"n\0x\"",
        "Content-Disposition: form-data; name=\"n\rx\"",
        "Content-Disposition: form-data; name=\"n\"\nX: y",
        &format!("{named}\r\n{named}"),
        &format!("{named}\r\nContent-Transfer-Encoding: base64"),
        &format!("{named}\r\nContent-Transfer-Encoding: binary"),
        &format!("{named}\r\nContent-Encoding: gzip"),
        &format!("{named}\r\nContent-Type: text/plain\r\nContent-Type: image/png"),
        &format!("{named}\r\nContent-Type: Multipart/Mixed; boundary=c"),
        &format!("Content-Type: image/png; Name=\"x\"\r\n{named}"),
        &format!("{named}\r\nContent-Length: 2"),
        &format!("{named}\r\nContent-Length: 01"),
        &format!("{named}\r\nX: y"),
        &format!("{named}\r\nX"),
        "Content-Disposition: form-data; name=\"_charset_\"",
        "Content-Disposition: form-data; name=\"_method\"",
        "Content-Disposition: form-data; name=\"[Method\"",
    ] {
        assert!(Form::read(KIND, one(head, "2").as_bytes()).is_err(), "{head:?}");
    }
    let latin =
        [b"--b-1\r\nContent-Disposition: form-data; name=\"\xe9\"\r\n\r\n2", &b"\r\n--b-1--"[..]];
    assert!(Form::read(KIND, &latin.concat()).is_err());
    assert!(
        Form::read(KIND, one(&format!("{named}\r\nContent-Length: 1"), "2").as_bytes()).is_ok()
    );
}

#[test]
fn f70_a_field_that_could_be_taken_for_the_priced_one_is_refused() {
    let text = |body: &str, name: &str| {
        Form::read(KIND, body.as_bytes()).unwrap().text(name).map(|text| text.map(str::to_owned))
    };
    for name in [
        "N_1", " n_1", "n_1 ", "n_1[]", "n_1[0]", "n.1", "n-1", "n 1", "n%5f1", "%6e_1", "N_1[a]",
        "n_1%20", "n_1[",
    ] {
        assert!(text(&field(name, "2"), "n_1").is_err(), "{name:?}");
        let both = field("n_1", "2").replace("--b-1--\r\n", "") + &field(name, "3");
        assert!(text(&both, "n_1").is_err(), "{name:?}");
    }
    assert!(text(&field("\u{17f}ize", "2"), "size").is_err());
    for name in ["n", "n_12", "x[n_1]", "n%", "n_1%zz"] {
        assert_eq!(text(&field(name, "2"), "n_1"), Ok(None), "{name:?}");
    }
    // Of a list that is named, every other place is refused.
    assert_eq!(text(&field("a[b]", "2"), "a[b]"), Ok(Some("2".to_owned())));
    for name in ["a", "a[]", "a[c]", "A[b]"] {
        assert!(text(&field(name, "2"), "a[b]").is_err(), "{name:?}");
    }
}

#[test]
fn f70_a_field_that_could_be_read_as_another_text_or_as_a_file_is_refused() {
    let named = "Content-Disposition: form-data; name=\"n\"";
    let text = |head: &str, content: &str| {
        let body = one(head, content);
        Form::read(KIND, body.as_bytes()).unwrap().text("n").map(|text| text.map(str::to_owned))
    };
    for kind in ["text/plain", "Text/Plain; Charset=UTF-8", "text/plain;charset=\"utf-8\""] {
        let head = format!("{named}\r\nContent-Type: {kind}");
        assert_eq!(text(&head, "2"), Ok(Some("2".to_owned())), "{kind}");
    }
    for kind in [
        "",
        "text/html",
        "application/octet-stream",
        "application/json",
        "text/plain; charset=utf-7",
        "text/plain; charset=utf-16",
        "text/plain; charset=us-ascii",
        "text/plain; x=y",
        "text/plain;",
        "text/plain; charset=utf-8; charset=utf-16",
    ] {
        assert!(text(&format!("{named}\r\nContent-Type: {kind}"), "2").is_err(), "{kind}");
    }
    for filename in ["", "a", "2"] {
        assert!(text(&format!("{named}; filename=\"{filename}\""), "2").is_err(), "{filename:?}");
    }
    for content in [" 2", "2 ", "2\r\n", "2\0", "\t2", "2\u{85}", "2\u{a0}"] {
        assert!(text(named, content).is_err(), "{content:?}");
    }
    let broken = field("n", "@").replace('@', "").into_bytes();
    let at = broken.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let broken = [&broken[..at], b"\xff", &broken[at..]].concat();
    assert!(Form::read(KIND, &broken).unwrap().text("n").is_err());
}

/// A reader that is as careless as there are: lines of any end, boundaries anywhere, the first
/// name that there is.
fn carelessly(body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
    let parts = text.split("--b-1").skip(1).map_while(|part| part.strip_prefix('\n'));
    let read = |part: &str| {
        let (head, content) = part.split_once("\n\n").unwrap_or((part, ""));
        let name = head.split("name=").nth(1).unwrap_or_default().trim_start_matches('"');
        let name = name.split(['"', ';', '\n']).next().unwrap_or_default();
        let content = content.strip_suffix('\n').unwrap_or(content);
        (name.to_owned(), content.as_bytes().to_vec())
    };
    parts.map(read).collect()
}

proptest! {
    #[test]
    fn f70_what_is_read_of_a_form_is_what_a_careless_reader_reads(
        lines in prop::collection::vec(prop::sample::select(&[
            "--b-1", "--b-1--", "--b-1 ", "\r\n", "\r\n", "\r\n", "\n", "\r", "--", "",
            "Content-Disposition: form-data; name=\"n\"", "content-disposition: form-data; name=m",
            "; filename=\"f\"", "Content-Type: text/plain", "2", "x", "name=\"n\"", "\0",
        ][..]), 0..24),
        framed in any::<bool>(),
    ) {
        let mut body = lines.concat();
        if framed {
            body = format!("--b-1\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n{body}\r\n--b-1--");
        }
        if let Ok(form) = Form::read(KIND, body.as_bytes()) {
            let normal = |content: &[u8]| {
                String::from_utf8_lossy(content).replace("\r\n", "\n").into_bytes()
            };
            let read: Vec<_> = (form.parts().iter())
                .map(|part| (part.name.to_owned(), normal(part.content)))
                .collect();
            prop_assert_eq!(read, carelessly(body.as_bytes()));
        }
    }
}
