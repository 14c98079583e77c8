package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestFailures: what goes wrong ends with a message that says what to do, and production is as it was.
func TestFailures(t *testing.T) {
	t.Parallel()
	p := newProduction(t, "")
	t.Run("data verify", func(t *testing.T) { p.on(t).verifies() })
	t.Run("copies", func(t *testing.T) { p.on(t).copies() })
	t.Run("port taken", func(t *testing.T) { p.on(t).portTaken() })
	t.Run("second server", func(t *testing.T) { p.on(t).secondServer() })
	t.Run("nothing behind a name", func(t *testing.T) { p.on(t).nothingBehind() })
}

func (p *prod) on(t *testing.T) *prod {
	c := *p
	c.site = p.with(t)
	return &c
}

// says holds that a text names what happened and what to do, and no password.
func says(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
	if strings.Contains(text, "wr0ng") {
		t.Errorf("it tells the password:\n%s", text)
	}
}

// verifies compares databases that cannot be compared.
func (p *prod) verifies() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	for _, c := range []struct {
		name, source string
		want         []string
	}{
		{"unreachable", pgURL("sluice", nobody), []string{"connection refused", "check that a PostgreSQL server listens at " + nobody}},
		{"wrong password", pgURL("app:wr0ng", p.at), []string{`password authentication failed for user "app"`, "check user and password, and that pg_hba.conf lets the user in"}},
		{"no such database", strings.Replace(pgURL("sluice", p.at), "/postgres", "/nothing", 1), []string{`database "nothing" does not exist`}},
		{"missing privilege", pgURL("reader:right", p.at), []string{`GRANT pg_read_all_data TO "reader"`, "sluice data grants postgres"}},
	} {
		p.t.Run(c.name, func(t *testing.T) {
			q := p.on(t)
			r := q.sluice("data", "verify", c.source, pgURL("sluice", q.frozen))
			if r.code != 2 {
				t.Errorf("it ends with %d", r.code)
			}
			says(t, r.out+r.errs, c.want...)
			q.unchanged()
		})
	}
}

// copies begins copies that cannot be made.
func (p *prod) copies() {
	p.configure("secrets:\n  wrong: {file: wrong}\n  unset: {env: NOT_SET_ANYWHERE}\n", "")
	p.write("wrong", "wr0ng")
	for i, c := range []struct {
		name, connection, image string
		want                    []string
	}{
		{"unreachable", "postgres://sluice@postgres:5433/postgres", "postgres:new", []string{"5433"}},
		{"a host that is no Service", "postgres://sluice@elsewhere:5432/postgres", "postgres:new", []string{"elsewhere"}},
		{"wrong password", "postgres://app:{{secrets.wrong}}@postgres:5432/postgres", "postgres:new", []string{"password authentication failed", "check user and password"}},
		{"missing privilege", "postgres://reader:right@postgres:5432/postgres", "postgres:new", []string{"GRANT pg_read_all_data TO reader"}},
		{"secret not set", "postgres://app:{{secrets.unset}}@postgres:5432/postgres", "postgres:new", []string{"secret unset", "NOT_SET_ANYWHERE"}},
		{"a version without a command", "postgres://sluice@postgres:5432/postgres", "postgres:17", []string{`image "postgres:17" is not mapped to one (add command:`}},
	} {
		p.t.Run(c.name, func(t *testing.T) {
			q := p.on(t)
			d := q.stops(q.start(q.copying(fmt.Sprintf("copy-%d", i), c.connection, c.image)))
			says(t, d.String(), c.want...)
			q.unchanged()
		})
	}
}

// stops waits until a delivery has failed, or asks a person because a step could not tell, and then cancels it.
func (p *prod) stops(id string) delivery {
	p.t.Helper()
	d := p.until(id, "at its end, or asking", func(d delivery) bool { return d.Status == "FAILED" || d.Status == "AWAITING_APPROVAL" })
	if d.Status == "AWAITING_APPROVAL" {
		p.must("deploy", "cancel", id)
		p.ended(id, "CANCELLED")
	}
	return d
}

// configure adds a section and images to the configuration, which the server reads when it changes.
func (p *prod) configure(section, images string) {
	p.write("sluice.yaml", "accounts: {local: {kind: local}}\n"+section+webImages(p.t)+postgresImages(p.site)+images)
}

// nothingBehind names a companion program that is not there, and a metric provider that is not configured.
func (p *prod) nothingBehind() {
	p.configure("", "  gone:1: [\"${SLUICE_COMPANIONS}/gone\"]\n")
	d := p.stops(p.start(p.judged("gone", "", "nobody", "gone:1")))
	says(p.t, d.String(), "/gone: no such file", "map its image to a program that exists under images: in sluice.yaml")

	r := p.sluice("--data", p.path("other"), "deploy", "start", "-f", p.judged("unknown", analysed, "nobody", "web:1"))
	if r.code != 1 {
		p.t.Errorf("without its metric provider it starts: %d %s", r.code, r.out)
	}
	says(p.t, r.errs, `there is no metric provider named "nobody"`, "add it under metricProviders: in ")

	p.unchanged()
}

// portTaken delivers a Service whose port another program holds.
func (p *prod) portTaken() {
	const text = "application: taken\ntargets: {one: {account: local, namespace: taken}}\nmanifests:\n  - inline: |"
	manifests := strings.Replace(webManifests, "IMAGE", "web:1", 1)
	p.ended(p.start(p.write("taken.yaml", text+manifests)), "SUCCEEDED")
	host, _, err := net.SplitHostPort(p.address("taken/web"))
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "9090"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	d := p.ended(p.start(p.write("taken.yaml", text+strings.Replace(manifests, "port: 80,", "port: 9090,", 1))), "FAILED")
	says(p.t, d.Reason, "cannot listen on "+host+":9090", "another program holds port 9090 there; end it or give the Service another port")
	if got := ask(http.DefaultClient, p.address("taken/web")); got.err != nil || got.version != "1" {
		p.t.Errorf("the version before answers %q, %v", got.version, got.err)
	}
	p.unchanged()
}

// secondServer starts a server on the data directory of one that runs.
func (p *prod) secondServer() {
	r := p.sluice("server", "--data", p.data)
	if r.code != 1 {
		p.t.Errorf("it ends with %d", r.code)
	}
	says(p.t, r.errs, p.data, "sluice server stop")
	p.unchanged()
}

// judged writes a deploy file of one target with a gate after it, judged by a metric provider.
func (p *prod) judged(name, gate, provider, image string) string {
	return p.write(name+".yaml", fmt.Sprintf(`
application: %[1]s
targets: {one: {account: local, namespace: %[1]s, constraints: {afterDeployment: [%[2]s]}}}
analysis: {defaultMetricProviderName: %[3]s, queries: [{name: one, queryTemplate: vector(1), upperLimit: 1}]}
manifests:
  - inline: |%[4]s`, name, gate, provider, strings.Replace(webManifests, "IMAGE", image, 1)))
}
