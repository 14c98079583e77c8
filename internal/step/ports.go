package step

import (
	"net/http"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Ports are what steps work with. Each function returns an error of kind not found that names what is configured.
type Ports struct {
	Platform func(account string) (platform.Platform, error)
	Volumes  func(account string) (volume.Driver, error)
	Engine   func(name string) (database.Engine, error)
	Metrics  func(name string) (metrics.Provider, error)
	Secret   func(name string) (string, error)
	// Callback returns the capability URL of one invocation, without the trailing /callback. The same key gives the same
	// URL for the whole life of the server's data directory.
	Callback func(key string) string
	HTTP     *http.Client
}
