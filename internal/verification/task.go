package verification

import (
	"context"
	"net"
	"net/url"
	"slices"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/plan"
)

// The commands of a Job, and what they give back.
const (
	CompareCommand     = "compare"     // an Answer
	FingerprintCommand = "fingerprint" // a Digest without leaves
)

// Task is what a Job is told. It holds the passwords of the databases, and the seed.
type Task struct {
	Engine   string                  `json:"engine"`
	Sites    []Site                  `json:"sites"` // two to compare, the old one first; one to fingerprint
	Seed     string                  `json:"seed"`
	Contract []fingerprint.Exclusion `json:"contract,omitempty"`
	Checks   []plan.Check            `json:"checks,omitempty"`
	Division *Division               `json:"division,omitempty"` // where several pods share it
}

// Site is where a database is: its connection, and the namespace of the Service that is the connection's host.
type Site struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	URL       string `json:"url"`
}

// Dial connects to a port of a Service.
type Dial func(ctx context.Context, namespace, service, port string) (net.Conn, error)

// Bound returns the databases of a task, dialled so that each host means its own namespace's Service.
func (t Task) Bound(engine database.Engine, dial Dial) []Database {
	var out []Database
	for _, s := range t.Sites {
		out = append(out, Database{Engine: engine, Where: s.Where(), URL: database.URL{Value: s.URL, Frozen: true,
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				return dial(ctx, s.Namespace, host, port)
			}}})
	}
	return out
}

// Where names a site for people.
func (s Site) Where() string { return "database " + s.Name + " in namespace " + s.Namespace }

// Compare does what CompareCommand stands for.
func (t Task) Compare(ctx context.Context, engine database.Engine, dial Dial, o Options) (Answer, error) {
	seed, err := fingerprint.ParseSeed(t.Seed)
	if err != nil {
		return Answer{}, err
	}
	sides := t.Bound(engine, dial)
	if len(sides) != 2 {
		return Answer{}, fault.Newf(fault.Invalid, "a comparison has two sides, not %d", len(sides))
	}
	x, err := Open(ctx, [2]Database(sides), t.Contract)
	if err != nil {
		return Answer{}, err
	}
	defer x.Close()
	if t.Division == nil {
		return x.Compare(ctx, seed, t.Checks, o)
	}
	if x.plan, err = t.Division.Of(x.plan, o.Share); err != nil {
		return Answer{}, err
	}
	o = o.of(t.Division)
	if t.Division.checks(o.Share) {
		found, err := x.check(ctx, t.Checks, o)
		return Answer{Findings: found}, err
	}
	r, err := x.Rows(ctx, seed, o)
	return Answer{Report: r}, err
}

// Fingerprint does what FingerprintCommand stands for. The leaves stay: the roots are all that such a fingerprint is held
// against others by.
func (t Task) Fingerprint(ctx context.Context, engine database.Engine, dial Dial, o Options) (*fingerprint.Digest, error) {
	seed, err := fingerprint.ParseSeed(t.Seed)
	if err != nil {
		return nil, err
	}
	sides := t.Bound(engine, dial)
	if len(sides) != 1 {
		return nil, fault.Newf(fault.Invalid, "a fingerprint is of one database, not of %d", len(sides))
	}
	s, err := sides[0].open(ctx)
	if err != nil {
		return nil, err
	}
	defer quietly(s)
	catalog, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := Whole(catalog)
	if err != nil {
		return nil, err
	}
	if t.Division != nil {
		if p, err = t.Division.Of(p, o.Share); err != nil {
			return nil, err
		}
		o = o.of(t.Division)
	}
	d, err := Fingerprint(ctx, s, p, seed, o)
	if err != nil {
		return nil, err
	}
	for i := range d.Tables {
		d.Tables[i].Leaves = nil
	}
	return d, nil
}

// Portable reports whether a connection means the same in a pod as here: it names no file of this machine.
func Portable(connection string) bool {
	u, err := url.Parse(connection)
	if err != nil {
		return false
	}
	for name := range u.Query() {
		if slices.Contains([]string{"sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile", "service", "servicefile", "tlsCAFile", "tlsCertificateKeyFile"}, name) {
			return false
		}
	}
	return true
}

const (
	// muchRows and muchBytes are from when on a Job beside the data spares the API server the rows. They are judgement, not a
	// break-even of time: on the clusters of the lab, which share one machine, a Job is slower at 400,000 rows still.
	muchRows  = 100_000
	muchBytes = 32 << 20
)

// Much reports whether the catalogs tell of so much data that it should be read where it is. Both numbers are asked, because
// an engine that never analysed a table does not know its rows.
func Much(catalogs ...database.Catalog) bool {
	var rows, bytes int64
	for _, c := range catalogs {
		for _, r := range c.Relations {
			rows, bytes = rows+max(0, r.Rows), bytes+r.Bytes
		}
	}
	return rows >= muchRows || bytes >= muchBytes
}

// Much reports whether the pair should be compared where it is.
func (x *Pair) Much() bool { return Much(x.catalogs[:]...) }
